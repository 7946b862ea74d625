"""The antialiased bilinear resize of uint8 RGB: torchvision's to the bit, in two thirds of its time.

Two passes, along rows and then along columns, each a weighted sum of neighbouring pixels with a triangle
filter as wide as the reduction (`_plan`). Both add up 15-bit weights in 32-bit integers and round to 8 bits,
as torch's `_upsample_bilinear2d_aa` does for uint8, so the results are equal (tests/data/test_views.py).

numba does not use vector instructions on three interleaved channels by itself, and torch copies every crop to
four channels and back. So the two inner loops are given to LLVM as vectors, which it translates for any
processor: of a row, four bytes at once (a pixel and the first byte of the next), of a column, `LANES` bytes.

All in one file: numba's cache notices changes in one only.

Shape legend: H, W an image, h, w a crop, S view side in pixels, K taps: input pixels of one output pixel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from ...common.jit import jit
from ...common.types import Pixels

LANES = 32
MOST_TAPS = 5  # of the row pass, which has a loop for each number of taps: reductions up to 2.5 times

_local: Any = cgutils.alloca_once  # numba gives it no types
_BYTE, _INT = ir.IntType(8), ir.IntType(32)


class _Arrays:
    """The array arguments of an intrinsic, by their place: where their data lie, how long they are."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self._builder = builder
        self._made = [
            context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else None
            for kind, value in zip(signature.args, arguments, strict=True)
        ]

    def data(self, place: int) -> Any:
        """Pointer to the first element."""
        made = self._made[place]
        assert made is not None
        return made.data

    def length(self, place: int, axis: int) -> Any:
        """Length along an axis."""
        made = self._made[place]
        assert made is not None
        return self._builder.extract_value(made.shape, axis)


def _splat(builder: Any, number: Any, lanes: int) -> Any:
    """A vector of one number."""
    nothing = ir.Constant(ir.VectorType(_INT, lanes), ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes))


def _half(builder: Any, shift: Any, lanes: int) -> Any:
    """What a sum starts from, so that the shift rounds."""
    one = ir.Constant(_INT, 1)
    return _splat(builder, builder.shl(one, builder.sub(shift, one)), lanes)


def _weighted(builder: Any, pointer: Any, weight: Any, lanes: int) -> Any:
    """Neighbouring bytes times a weight, as 32-bit integers."""
    vector = ir.VectorType(_BYTE, lanes)
    pixels = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)
    return builder.mul(builder.zext(pixels, ir.VectorType(_INT, lanes)), _splat(builder, weight, lanes))


def _store(builder: Any, total: Any, shift: Any, pointer: Any, lanes: int) -> None:
    """Shift sums back to 8 bits and store them; the weights are positive, so only white can overflow."""
    white = ir.Constant(total.type, [255] * lanes)
    total = builder.lshr(total, _splat(builder, shift, lanes))
    total = builder.select(builder.icmp_unsigned(">", total, white), white, total)
    vector = ir.VectorType(_BYTE, lanes)
    builder.store(builder.trunc(total, vector), builder.bitcast(pointer, vector.as_pointer()), align=1)


def _pass_over_row(
    _typing: Any, row: Any, starts: Any, weights: Any, taps: Any, shift: Any, out: Any, size: Any
) -> Any:
    """Resize a row of pixels: out[x] = sum over k of weights[x, k] * row[starts[x] + k], K at most MOST_TAPS.

    Reads one byte behind the last pixel of `row` and writes one behind the last of `out`.
    """
    signature = types.void(row, starts, weights, types.intp, types.int32, out, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        taps, shift, size = arguments[3], arguments[4], arguments[6]
        arrays = _Arrays(context, builder, signature, arguments)
        done = builder.append_basic_block("done")
        choice = builder.switch(taps, done)
        for number in range(1, MOST_TAPS + 1):
            block = builder.append_basic_block(f"taps{number}")
            choice.add_case(ir.Constant(taps.type, number), block)
            builder.position_at_end(block)
            with cgutils.for_range(builder, size) as loop:
                _row_pixel(builder, arrays, loop.index, number, shift)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, generate


_row_pass: Any = intrinsic(_pass_over_row)


def _row_pixel(builder: Any, arrays: _Arrays, place: Any, taps: int, shift: Any) -> None:
    """One pixel of `_row_pass`."""

    def times(number: Any, factor: int) -> Any:
        return builder.mul(number, ir.Constant(number.type, factor))

    start = times(builder.load(builder.gep(arrays.data(1), [place])), 3)
    total = _half(builder, shift, 4)
    for tap in range(taps):
        pixel = builder.gep(arrays.data(0), [builder.add(start, ir.Constant(start.type, 3 * tap))])
        number = builder.add(times(place, taps), ir.Constant(place.type, tap))
        weight = builder.load(builder.gep(arrays.data(2), [number]))
        total = builder.add(total, _weighted(builder, pixel, weight, 4))
    _store(builder, total, shift, builder.gep(arrays.data(5), [times(place, 3)]), 4)


def _pass_over_rows(_typing: Any, rows: Any, weights: Any, shift: Any, out: Any) -> Any:
    """Mix rows: out[j] = sum over k of weights[k] * rows[k, j], for all of `out`, at least `LANES` bytes.

    `rows` is (K, at least as many), contiguous.
    """
    signature = types.void(rows, weights, types.int32, out)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = _Arrays(context, builder, signature, arguments)
        size, lanes = arrays.length(3, 0), ir.Constant(ir.IntType(64), LANES)
        last = builder.sub(size, lanes)
        chunks = builder.sdiv(builder.add(size, ir.Constant(size.type, LANES - 1)), lanes)
        with cgutils.for_range(builder, chunks) as loop:
            begin = builder.mul(loop.index, lanes)
            # the last bytes are done together with some before them
            begin = builder.select(builder.icmp_signed("<", begin, last), begin, last)
            _column_bytes(builder, arrays, begin, arguments[2])
        return context.get_dummy_value()

    return signature, generate


_column_pass: Any = intrinsic(_pass_over_rows)


def _column_bytes(builder: Any, arrays: _Arrays, begin: Any, shift: Any) -> None:
    """`LANES` bytes of `_column_pass`."""
    half = _half(builder, shift, LANES)
    total = _local(builder, half.type)
    builder.store(half, total)
    with cgutils.for_range(builder, arrays.length(1, 0)) as loop:
        place = builder.add(begin, builder.mul(loop.index, arrays.length(0, 1)))
        weight = builder.load(builder.gep(arrays.data(1), [loop.index]))
        term = _weighted(builder, builder.gep(arrays.data(0), [place]), weight, LANES)
        builder.store(builder.add(builder.load(total), term), total)
    _store(builder, builder.load(total), shift, builder.gep(arrays.data(3), [begin]), LANES)


@jit
def _plan(inside: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """Where each output pixel's taps begin, their weights, and by how many bits these are shifted.

    Args:
        inside: pixels of the crop along one axis.
        size: S.

    Returns:
        (S,) starts; (S, K) weights of `1 << shift` in sum, each below 2 to the 15th; the shift.
    """
    scale = inside / size
    support = max(1.0, scale)
    starts, counts = np.empty(size, np.int64), np.empty(size, np.int64)
    exact = np.zeros((size, 2 * math.ceil(support) + 1))
    heaviest, taps = 0.0, 0
    for place in range(size):
        centre = scale * (place + 0.5)
        start = max(int(centre - support + 0.5), 0)
        count = min(int(centre + support + 0.5), inside) - start
        total = 0.0
        for tap in range(count):
            exact[place, tap] = max(0.0, 1.0 - abs((tap + start - centre + 0.5) / support))
            total += exact[place, tap]
        for tap in range(count):
            exact[place, tap] /= total
            heaviest = max(heaviest, exact[place, tap])
        starts[place], counts[place], taps = start, count, max(taps, count)
    shift = 1
    while int(0.5 + heaviest * (1 << (shift + 1))) < 1 << 15 and shift < 21:
        shift += 1
    weights = np.zeros((size, taps), np.int32)
    for place in range(size):
        # every pixel has all K taps, so that the inner loop has no condition; none reads past the end
        back = max(0, starts[place] + taps - inside)
        starts[place] -= back
        for tap in range(counts[place]):
            weights[place, tap + back] = int(exact[place, tap] * (1 << shift) + 0.5)
    return starts, weights, shift


@jit
def resize(image: Pixels, top: int, left: int, height: int, width: int, out: Pixels) -> bool:
    """Resize a crop into `out`.

    Args:
        image: (H, W, 3), contiguous.
        top, left, height, width: the crop h x w, inside the image.
        out: (S, 3 S), contiguous.

    Returns:
        Whether it was done: a reduction of the width by more than 2.5 is not.
    """
    size = len(out)
    across, row_weights, row_shift = _plan(width, size)
    if row_weights.shape[1] > MOST_TAPS:
        return False
    down, column_weights, column_shift = _plan(height, size)
    # the last row could end with the image: it gets a pixel behind it
    last = np.zeros((width + 1, 3), np.uint8)
    last[:width] = image[top + height - 1, left : left + width]
    line, taps = 3 * size, column_weights.shape[1]
    # the rows under way, row n in place n % K: they stay in the fastest cache
    ring = np.empty((taps, max(line + 1, LANES)), np.uint8)
    turned, short = np.empty(taps, np.int32), np.empty(LANES, np.uint8)
    done = 0
    for place in range(size):
        while done < down[place] + taps:
            row = image[top + done, left:] if done < height - 1 else last
            made = ring[done % taps]
            _row_pass(row, across, row_weights, row_weights.shape[1], np.int32(row_shift), made, size)
            done += 1
        for tap in range(taps):
            turned[(down[place] + tap) % taps] = column_weights[place, tap]
        _column_pass(ring, turned, np.int32(column_shift), out[place] if line >= LANES else short)
        if line < LANES:
            out[place] = short[:line]
    return True
