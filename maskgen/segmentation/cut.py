"""Cut an image along its colour edges, starting from a rough mask: GrabCut's energy, minimised by relaxation.

Shapes: h, w the working image; P pixels; K colour components.

Sources: C. Rother, V. Kolmogorov and A. Blake, "GrabCut", SIGGRAPH 2004 (the energy, equations 2 to 11);
A. Chambolle and T. Pock, "A First-Order Primal-Dual Algorithm for Convex Problems with Applications to
Imaging", JMIV 2011 (algorithm 1). OpenCV's grabCut minimises the same energy exactly, by maximum flow, and
takes more than three times as long (docs/masks.md).
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ...common.jit import jit
from ...common.types import Mask, Pixels

COMPONENTS = 5  # Gaussians on each side, as in the paper
SAMPLE = 1500  # pixels that k-means sees, evenly spread; all pixels refine the components afterwards
LEAST_PIXELS = 10  # a component of fewer pixels has no covariance to speak of
# added to each variance, grey levels squared: what quantisation and compression do to flat colour
NOISE = 1.0
CERTAIN = 10.0  # cost of a fixed pixel's change; the eight edges of a pixel together cost at most 6.9
STEP = 0.25  # primal and dual; their product times 16, the squared norm of the differences, is 1


class ColourModel(NamedTuple):
    """A mixture of Gaussians.

    Attributes:
        mean: (K, 3) float32.
        whiten: (K, 3, 3) float32, lower triangular; whiten (x - mean) has unit covariance.
        constant: (K,) float32, minus the logarithms of weight and density at the mean.
    """

    mean: NDArray[np.float32]
    whiten: NDArray[np.float32]
    constant: NDArray[np.float32]


@jit("Tuple((float32[::1], int32[::1]))(float32[:, ::1], float32[:, ::1], float32[:, :, ::1], float32[::1])")
def cheapest_component(pixels, mean, whiten, constant):  # type: ignore[no-untyped-def]
    """Cost (P,) and number (P,) of the component that explains each pixel (P, 3) best (equation 9)."""
    count = len(pixels)
    cost = np.empty(count, np.float32)
    which = np.empty(count, np.int32)
    for i in range(count):
        best = np.float32(1e30)
        for k in range(len(mean)):
            d0 = pixels[i, 0] - mean[k, 0]
            d1 = pixels[i, 1] - mean[k, 1]
            d2 = pixels[i, 2] - mean[k, 2]
            e0 = whiten[k, 0, 0] * d0
            e1 = whiten[k, 1, 0] * d0 + whiten[k, 1, 1] * d1
            e2 = whiten[k, 2, 0] * d0 + whiten[k, 2, 1] * d1 + whiten[k, 2, 2] * d2
            value = constant[k] + np.float32(0.5) * (e0 * e0 + e1 * e1 + e2 * e2)
            if value < best:
                best = value
                which[i] = k
        cost[i] = best
    return cost, which


@jit("Tuple((float64[::1], float64[:, ::1], float64[:, :, ::1]))(float32[:, ::1], int32[::1], int64)")
def _moments(pixels, which, components):  # type: ignore[no-untyped-def]
    """Count, sum and sum of outer products of the pixels of each component."""
    number = np.zeros(components)
    first = np.zeros((components, 3))
    second = np.zeros((components, 3, 3))
    for i in range(len(pixels)):
        k = which[i]
        number[k] += 1
        for a in range(3):
            first[k, a] += pixels[i, a]
            for b in range(a + 1):
                second[k, a, b] += pixels[i, a] * pixels[i, b]
    return number, first, second


def _fitted(pixels: NDArray[np.float32], which: NDArray[np.int32], components: int) -> ColourModel:
    """Fit one Gaussian to the pixels of each component that has enough of them."""
    number, first, second = _moments(pixels, which, components)
    enough = number >= LEAST_PIXELS
    number, mean = number[enough], first[enough] / number[enough, None]
    lower = second[enough] / number[:, None, None] - mean[:, :, None] * mean[:, None, :]
    covariance = np.tril(lower) + np.tril(lower, -1).transpose(0, 2, 1) + NOISE * np.eye(3)
    root = np.linalg.cholesky(covariance)
    constant = np.log(np.einsum("kii->ki", root)).sum(axis=1) - np.log(number / number.sum())
    whiten = np.ascontiguousarray(np.linalg.inv(root), np.float32)
    return ColourModel(mean.astype(np.float32), whiten, constant.astype(np.float32))


def colour_model(pixels: NDArray[np.float32]) -> ColourModel:
    """Model colours: k-means on a sample, then every pixel to its best component and the components anew.

    OpenCV's random generator is seeded, so that a model depends on its pixels alone.

    Args:
        pixels: (P, 3) float32, at least 50.
    """
    cv2.setRNGSeed(0)
    sample = np.ascontiguousarray(pixels[:: max(1, len(pixels) // SAMPLE)])
    stop = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 10, 0.5)
    _, which, _ = cv2.kmeans(sample, COMPONENTS, None, stop, 1, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    first = _fitted(sample, which.ravel(), COMPONENTS)
    return _fitted(pixels, cheapest_component(pixels, *first)[1], len(first.mean))


@jit("float32[:, :, ::1](float32[:, :, ::1])")
def edge_weights(image):  # type: ignore[no-untyped-def]
    """How strongly neighbours hold together (equation 11): 1 where alike, less over edges and on diagonals.

    (h, w, 3) to (4, h, w): to the right, below, below right, below left; 0 where there is no such neighbour.
    """
    height, width, _ = image.shape
    weight = np.zeros((4, height, width), np.float32)
    total, count = 0.0, 0
    for y in range(height):
        for x in range(width):
            for n in range(4):
                ny = y + (0, 1, 1, 1)[n]
                nx = x + (1, 0, 1, -1)[n]
                if ny < height and 0 <= nx < width:
                    square = np.float32(0.0)
                    for c in range(3):
                        difference = image[y, x, c] - image[ny, nx, c]
                        square += difference * difference
                    weight[n, y, x] = square
                    total += float(square)
                    count += 1
    beta = np.float32(count / (2 * total)) if total > 0 else np.float32(0)
    for n in range(4):
        length = np.float32(1.0 if n < 2 else np.sqrt(0.5))
        for y in range(height - (n > 0)):
            for x in range(n == 3, width - (n == 0 or n == 2)):
                weight[n, y, x] = length * np.exp(-beta * weight[n, y, x])
    return weight


@jit("float32[:, ::1](float32[:, ::1], float32[:, :, ::1], float32[:, ::1], int64, float32)")
def relaxed_cut(unary, weight, start, rounds, step):  # type: ignore[no-untyped-def]
    """Minimise the sum of `unary` u and of `weight` |u - u of the neighbour| over 0 <= u <= 1.

    For (h, w) costs, (4, h, w) weights as of `edge_weights` and a (h, w) start. At the minimum u > 0.5 is a
    minimum cut; 100 rounds come near. The arrays have a rim of zeros, so that no pixel is a special case.
    """
    height, width = unary.shape
    u = np.zeros((height + 2, width + 2), np.float32)
    u[1 : height + 1, 1 : width + 1] = start
    ahead = u.copy()
    dual = np.zeros((4, height + 2, width + 2), np.float32)
    right, down, fall, rise = dual[0], dual[1], dual[2], dual[3]
    for _ in range(rounds):
        for y in range(1, height + 1):
            for x in range(1, width + 1):
                here = ahead[y, x]
                most = weight[0, y - 1, x - 1]
                right[y, x] = min(most, max(-most, right[y, x] + step * (ahead[y, x + 1] - here)))
                most = weight[1, y - 1, x - 1]
                down[y, x] = min(most, max(-most, down[y, x] + step * (ahead[y + 1, x] - here)))
                most = weight[2, y - 1, x - 1]
                fall[y, x] = min(most, max(-most, fall[y, x] + step * (ahead[y + 1, x + 1] - here)))
                most = weight[3, y - 1, x - 1]
                rise[y, x] = min(most, max(-most, rise[y, x] + step * (ahead[y + 1, x - 1] - here)))
        for y in range(1, height + 1):
            for x in range(1, width + 1):
                leaving = right[y, x] + down[y, x] + fall[y, x] + rise[y, x]
                entering = right[y, x - 1] + down[y - 1, x] + fall[y - 1, x - 1] + rise[y - 1, x + 1]
                old = u[y, x]
                moved = old + step * (leaving - entering - unary[y - 1, x - 1])
                u[y, x] = min(np.float32(1), max(np.float32(0), moved))
                ahead[y, x] = 2 * u[y, x] - old
    return u[1 : height + 1, 1 : width + 1].copy()


def colour_cut(work: Pixels, mask: Mask, rounds: int, smoothness: float) -> Mask:
    """Cut along colour edges, starting from a mask.

    Pixels outside the mask on the top, left and right border are background for good; everything else may
    change sides, also at the bottom, where objects stand.

    Args:
        work: (h, w, 3) uint8.
        mask: (h, w) bool.
        rounds: of the solver.
        smoothness: cost of an edge between two pixels of the same colour (gamma; the paper has 50).

    Returns:
        (h, w) bool; `mask` itself if it leaves nothing to model on one side.
    """
    inner, outer = np.count_nonzero(mask), np.count_nonzero(~mask)
    if min(inner, outer) < COMPONENTS * LEAST_PIXELS:
        return mask
    image = work.astype(np.float32)
    pixels, inside = image.reshape(-1, 3), mask.ravel()
    foreground, background = colour_model(pixels[inside]), colour_model(pixels[~inside])
    cost = cheapest_component(pixels, *foreground)[0] - cheapest_component(pixels, *background)[0]
    unary = (cost / np.float32(smoothness)).reshape(mask.shape)
    for line, kept in ((unary[0], mask[0]), (unary[:, 0], mask[:, 0]), (unary[:, -1], mask[:, -1])):
        line[~kept] = CERTAIN
    soft = relaxed_cut(unary, edge_weights(image), mask.astype(np.float32), rounds, STEP)
    cut: Mask = soft > 0.5
    return cut
