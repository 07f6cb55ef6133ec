"""The kernels in plain NumPy: the truth that every fast path is tested against, bit for bit.

Rules of the evaluator. Float maps are float32 (H, W, C); each arithmetic step rounds once to float32; nothing is fused
except where it says so, nothing is reordered. Sign maps are (H, W, ceil(C / 64)) uint64 words: bit 1 is -1, bit 0 is
+1, channel i is bit i % 64 of word i // 64, padding bits are 0. A convolution keeps the size of its input (stride 1)
and a tap beyond the border contributes 0. The one op that fuses is the float `conv2d`: each output is a chain of fused
multiply-adds in a fixed order (taps row by row, then input channels), as a vector unit with one output channel per
lane does it. That makes a result independent of tiles, threads and the width of the registers.
"""

from __future__ import annotations

import numpy as np

LANES = 16  # partial sums of a channel mean, see `channel_mean`
_CUBIC = -0.75  # the bicubic coefficient of PyTorch and OpenCV


def words_for(channels: int) -> int:
    """64-bit words of one pixel of a sign map."""
    return (channels + 63) // 64


def bits_to_words(bits: np.ndarray) -> np.ndarray:
    """Boolean (..., C) -> uint64 (..., ceil(C / 64)), channel i at bit i % 64 of word i // 64."""
    channels = bits.shape[-1]
    padded = np.zeros((*bits.shape[:-1], words_for(channels) * 64), dtype=bool)
    padded[..., :channels] = bits
    octets = np.packbits(padded, axis=-1, bitorder="little")
    return octets.view("<u8").astype(np.uint64, copy=False)


def words_to_bits(words: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of `bits_to_words`."""
    octets = np.ascontiguousarray(words.astype("<u8", copy=False)).view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little", count=channels).astype(bool)


def pack_filters(negative: np.ndarray) -> np.ndarray:
    """Boolean (O, kh, kw, C), True where a weight is -1 -> the file's uint8 (O, ceil(kh * kw * C / 8))."""
    return np.packbits(negative.reshape(negative.shape[0], -1), axis=-1, bitorder="little")


def unpack_filters(packed: np.ndarray, kernel: int, channels: int) -> np.ndarray:
    """The file's uint8 filters -> boolean (O, kernel, kernel, C), True where a weight is -1."""
    bits = np.unpackbits(packed, axis=-1, bitorder="little", count=kernel * kernel * channels)
    return bits.astype(bool).reshape(packed.shape[0], kernel, kernel, channels)


def threshold(value: np.ndarray, *, threshold: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Sign of a monotone function of each channel: positive where (x >= threshold) XOR flip. Returns words."""
    positive = (value >= threshold) ^ flip.astype(bool)
    return bits_to_words(~positive)


def binary_conv2d(
    words: np.ndarray, *, weight: np.ndarray, scale: np.ndarray, kernel: int, channels: int, alphabet: str
) -> np.ndarray:
    """Convolution of bits with signs: fl(scale[o] * dot[o]), the dot product over the taps inside the map.

    Alphabet "-1,+1": dot = taps * C - 2 popcount(a xor w). Alphabet "0,1", where a bit 0 is the activation 1 and a bit
    1 the activation 0: the mean of that and of the filter's sum, taps * C - popcount(a xor w) - popcount(w).
    """
    height, width, _ = words.shape
    filters = bits_to_words(unpack_filters(weight, kernel, channels))
    dot = np.zeros((height, width, len(filters)), dtype=np.int64)
    for row in range(kernel):
        for column in range(kernel):
            inside, shifted = _overlap(height, width, row - kernel // 2, column - kernel // 2)
            differing = words[shifted][:, :, None, :] ^ filters[None, None, :, row, column, :]
            count = np.bitwise_count(differing).sum(axis=-1, dtype=np.int64)
            if alphabet == "-1,+1":
                dot[inside] += channels - 2 * count
            else:
                dot[inside] += channels - count - np.bitwise_count(filters[:, row, column]).sum(axis=-1, dtype=np.int64)
    return scale * dot.astype(np.float32)


def _overlap(height: int, width: int, down: int, right: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where output pixels have the tap (down, right) inside the map, and where that tap reads."""
    inside = (
        slice(max(0, -down), max(0, min(height, height - down))),
        slice(max(0, -right), max(0, min(width, width - right))),
    )
    shifted = (
        slice(max(0, down), max(0, min(height, height + down))),
        slice(max(0, right), max(0, min(width, width + right))),
    )
    return inside, shifted


def fused_multiply_add(left: np.ndarray, right: np.ndarray, addend: np.ndarray) -> np.ndarray:
    """fl32(left * right + addend) with one rounding, for float32 operands in the normal range.

    The product is exact in float64; the sum is rounded to odd there, which makes the second rounding harmless
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    product = left.astype(np.float64) * right
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    even = (bits & 1) == 0
    toward = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where(even & (error != 0) & np.isfinite(total), bits + toward, bits)
    return odd.view(np.float64).astype(np.float32)


def conv2d(value: np.ndarray, *, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Float convolution: acc = bias (or 0); for each tap row by row, each channel: acc = fma(x, w, acc).

    Taps beyond the border take part with x = 0, as they do in a map that was padded with zeros.
    """
    height, width, channels = value.shape
    out, _, kernel, _ = weight.shape
    half = kernel // 2
    padded = np.pad(value, ((half, half), (half, half), (0, 0)))
    total = np.zeros((height, width, out), dtype=np.float32)
    if bias is not None:
        total += bias
    for row in range(kernel):
        for column in range(kernel):
            tap = padded[row : row + height, column : column + width]
            for channel in range(channels):
                total = fused_multiply_add(tap[:, :, channel, None], weight[:, channel, row, column], total)
    return total


def quantize(value: np.ndarray, *, inverse: np.ndarray, limit: int) -> np.ndarray:
    """fl(x * inverse[c]) limited to -limit .. limit (NaN: -limit) and rounded to even, as int16."""
    scaled = value * inverse
    above = np.where(scaled > -np.float32(limit), scaled, -np.float32(limit))
    return np.rint(np.where(above < limit, above, np.float32(limit))).astype(np.int16)


def int_conv2d(value: np.ndarray, *, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Convolution of integers: fl(fl(scale[o] * fl(sum)) + bias[o]); the sum is exact and fits 32 bits."""
    height, width, _ = value.shape
    out, _, kernel, _ = weight.shape
    half = kernel // 2
    padded = np.pad(value, ((half, half), (half, half), (0, 0))).astype(np.int64)
    total = np.zeros((height, width, out), dtype=np.int64)
    for row in range(kernel):
        for column in range(kernel):
            total += padded[row : row + height, column : column + width] @ weight[:, :, row, column].T.astype(np.int64)
    return scale * total.astype(np.float32) + bias


def relu(value: np.ndarray) -> np.ndarray:
    """Take x where x > 0, else +0."""
    return np.where(value > 0, value, np.float32(0))


def leaky_relu(value: np.ndarray, *, slope: float) -> np.ndarray:
    """Take x where x > 0, else fl(x * slope)."""
    return np.where(value > 0, value, value * np.float32(slope))


def prelu(value: np.ndarray, *, slope: np.ndarray) -> np.ndarray:
    """Take x where x > 0, else fl(x * slope[c])."""
    return np.where(value > 0, value, value * slope)


def affine(value: np.ndarray, *, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """fl(fl(x * scale[c]) + shift[c])."""
    return value * scale + shift


def add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """fl(left + right); a map of one channel is added to all channels."""
    return left + right


def mul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """fl(left * right); a map of one channel multiplies all channels."""
    return left * right


def scale(value: np.ndarray, *, factor: float) -> np.ndarray:
    """fl(x * factor)."""
    return value * np.float32(factor)


def clamp(value: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Take low where x < low, high where x > high, else x."""
    bounded = np.where(value < np.float32(low), np.float32(low), value)
    return np.where(bounded > np.float32(high), np.float32(high), bounded)


def channel_mean(value: np.ndarray, *, statistic: str) -> np.ndarray:
    """Mean of x ("mean") or |x| ("mean_abs") over the channels: (H, W, C) -> (H, W, 1).

    Channels are padded with zeros to a multiple of 16; lane j adds channels j, j + 16, ... to 0 in this order; lanes
    are folded 16 -> 8 -> 4 -> 2 -> 1 (lane[j] += lane[j + half]); the sum is multiplied by float32(1 / C).
    """
    height, width, channels = value.shape
    padded = np.zeros((height, width, -(-channels // LANES) * LANES), dtype=np.float32)
    padded[:, :, :channels] = np.abs(value) if statistic == "mean_abs" else value
    lanes = np.zeros((height, width, LANES), dtype=np.float32)
    for start in range(0, padded.shape[-1], LANES):
        lanes = lanes + padded[:, :, start : start + LANES]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[:, :, :half] + lanes[:, :, half:]
    return lanes * np.float32(1 / channels)


def pixel_shuffle(value: np.ndarray, *, factor: int) -> np.ndarray:
    """out[y * r + i, x * r + j, c] = in[y, x, c * r * r + i * r + j], as torch.nn.PixelShuffle."""
    height, width, channels = value.shape
    blocks = value.reshape(height, width, channels // factor**2, factor, factor)
    return blocks.transpose(0, 3, 1, 4, 2).reshape(height * factor, width * factor, channels // factor**2)


def resize_taps(mode: str, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """First offset (factor,) and float32 weights (factor, taps) of each output phase, half-pixel centres.

    Output index d = q * factor + p reads the inputs q + offset[p], q + offset[p] + 1, ..., clamped to the map.
    Weights are worked out in float64 and depend on the phase alone, so that a tile equals its part of the whole.
    """
    source = (np.arange(factor) + 0.5) / factor - 0.5
    base = np.floor(source)
    part = source - base
    if mode == "nearest":
        return np.zeros(factor, dtype=np.int64), np.ones((factor, 1), dtype=np.float32)
    if mode == "bilinear":
        return base.astype(np.int64), np.stack([1 - part, part], axis=1).astype(np.float32)
    distance = np.stack([1 + part, part, 1 - part, 2 - part], axis=1)
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    weights = np.where(distance <= 1, near, far)
    return base.astype(np.int64) - 1, weights.astype(np.float32)


def _resize_axis(value: np.ndarray, axis: int, factor: int, mode: str) -> np.ndarray:
    size = value.shape[axis]
    offsets, weights = resize_taps(mode, factor)
    position, phase = np.divmod(np.arange(size * factor), factor)
    shape = [1, 1, 1]
    shape[axis] = size * factor
    total = None
    for tap in range(weights.shape[1]):
        source = np.clip(position + offsets[phase] + tap, 0, size - 1)
        term = np.take(value, source, axis=axis) * weights[phase, tap].reshape(shape)
        total = term if total is None else total + term
    assert total is not None
    return total


def resize(value: np.ndarray, *, factor: int, mode: str) -> np.ndarray:
    """Magnify by an integer factor as torch does with align_corners=False; along x first, then along y.

    Along each axis the terms fl(weight * x) are added from the lowest input index to the highest.
    """
    return _resize_axis(_resize_axis(value, 1, factor, mode), 0, factor, mode)
