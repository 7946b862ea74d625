"""Spectral residual saliency: what sticks out of an image's log spectrum. Kept as the weak baseline.

Shapes: H, W pixels of the working image.

Source: X. Hou and L. Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 64  # the paper shrinks the image to 64 pixels
SMOOTHING = 2.5  # sigma of the final Gaussian, in pixels of the small image (their g, about 8 pixels wide)


def spectral_saliency(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Square of the back-transformed spectral residual (equations 1 to 5).

    Args:
        grey: (H, W) float32.

    Returns:
        (H, W) float32, at least 0.
    """
    height, width = grey.shape
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    spectrum = np.fft.fft2(small)
    log_amplitude = np.log(np.abs(spectrum) + 1e-9).astype(np.float32)
    residual = log_amplitude - cv2.blur(log_amplitude, (3, 3), borderType=cv2.BORDER_REFLECT)
    back = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    smooth = cv2.GaussianBlur(back.astype(np.float32), (0, 0), SMOOTHING)
    saliency: NDArray[np.float32] = cv2.resize(smooth, (width, height)).astype(np.float32, copy=False)
    return np.maximum(saliency, 0)
