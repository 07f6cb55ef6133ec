"""The convolutions by matrix multiplication, for installations without compiled kernels.

Signs become the floats -1 and +1 (0 beyond the border), whose sums are exact integers in float32 in any order. So the
binary convolution equals the reference bit for bit. So does that of integers, whose sums are exact in float64. The
float convolution adds in the order of the installed BLAS and agrees with the reference to a few units in the last
place.
"""

from __future__ import annotations

import numpy as np

from bam_plugin.packed.bits import unpack_filters, words_to_bits

_STRIP_VALUES = 4_000_000  # float32 values of one strip's patch matrix: 16 MB


def _convolve(padded: np.ndarray, matrix: np.ndarray, kernel: int, stride: int = 1) -> np.ndarray:
    """Valid convolution of (H + k - 1, W + k - 1, C) with (k * k * C, O), strip by strip."""
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(0, 1))[::stride, ::stride]
    height, width = windows.shape[:2]
    result = np.empty((height, width, matrix.shape[1]), dtype=np.float32)  # integers in float64 are rounded once here
    rows = max(1, 4 * _STRIP_VALUES // padded.itemsize // max(1, width * matrix.shape[0]))
    for start in range(0, height, rows):
        strip = windows[start : start + rows].transpose(0, 1, 3, 4, 2)
        columns = strip.reshape(-1, matrix.shape[0])
        result[start : start + rows] = (columns @ matrix).reshape(-1, width, matrix.shape[1])
    return result


def _pad(value: np.ndarray, half: int) -> np.ndarray:
    return np.pad(value, ((half, half), (half, half), (0, 0)))


def conv2d(
    value: np.ndarray, *, weight: np.ndarray, bias: np.ndarray | None = None, groups: int = 1, stride: int = 1
) -> np.ndarray:
    """As `packed.ops.convolution.conv2d`, up to the order of the additions."""
    kernel = weight.shape[2]
    padded = _pad(value, kernel // 2)
    if groups == 1:
        matrix = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]))
        result = _convolve(padded, matrix, kernel, stride)
    else:
        result = _grouped(padded, weight, value.shape[:2], groups, stride)
    return result if bias is None else result + bias


def _grouped(padded: np.ndarray, weight: np.ndarray, size: tuple[int, ...], groups: int, stride: int) -> np.ndarray:
    """Add tap by tap, because few channels in each group make small matrices."""
    (out, channels, kernel, _), (height, width) = weight.shape, size
    total = np.zeros((height // stride, width // stride, out), dtype=np.float32)
    for row, column, channel in np.ndindex(kernel, kernel, channels):
        tap = padded[row : row + height : stride, column : column + width : stride, channel::channels]
        total += np.repeat(tap, out // groups, axis=2) * weight[:, channel, row, column]
    return total


def int_conv2d(value: np.ndarray, *, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """As `packed.ops.convolution.int_conv2d`, bit for bit."""
    kernel = weight.shape[2]
    matrix = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]), dtype=np.float64)
    return scale * _convolve(_pad(value, kernel // 2).astype(np.float64), matrix, kernel) + bias


def binary_conv2d(
    words: np.ndarray, *, weight: np.ndarray, scale: np.ndarray, kernel: int, channels: int, alphabet: str
) -> np.ndarray:
    """As the reference, bit for bit."""
    one = np.float32(1)
    low = -one if alphabet == "-1,+1" else np.float32(0)
    signs = np.where(words_to_bits(words, channels), low, one)
    filters = np.where(unpack_filters(weight, kernel, channels), -one, one)
    matrix = np.ascontiguousarray(filters.reshape(len(filters), -1).T)
    return scale * _convolve(_pad(signs, kernel // 2), matrix, kernel)


FASTER = {"conv2d": conv2d, "int_conv2d": int_conv2d, "binary_conv2d": binary_conv2d}
