"""The convolutions: on signs, on floats, on integers.

A convolution of stride 1 keeps the size of its input. One of stride s makes every s-th pixel from the first one on. A
tap beyond the border contributes 0. Only the float `conv2d` fuses: each output is a chain of fused multiply-adds in a
fixed order (taps row by row, then input channels), as in a vector unit with one output channel per lane. So a result
does not depend on tiles, threads and the width of the registers.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from bam_plugin.packed.bits import bits_to_words, unpack_filters
from bam_plugin.packed.graph import ALPHABETS, Node, ValueType, packed_filter_bytes
from bam_plugin.packed.ops.operation import MAX_DOWN, MAX_KERNEL, Arrays, Call, Operation, Tile, grown, whole


def _overlap(height: int, width: int, down: int, right: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The output pixels that have the tap (down, right) inside the map, and the pixels that it reads."""
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


def check_conv2d(call: Call) -> ValueType:
    """conv2d: weight (O, I / groups, k, k), bias (O), optional; groups and stride if they are not 1."""
    (value,) = call.operands("float")
    groups = call.more_than_one("groups", value.channels)
    stride = call.more_than_one("stride", MAX_DOWN)
    if value.channels % groups:
        raise call.fault(f"cannot divide {value.channels} channels into {groups} groups")
    weight = call.tensor("weight", np.float32, (None, value.channels // groups, None, None))
    out, _, kernel, width = weight.shape
    up = Fraction(value.up) / stride
    if out % groups or up.denominator > MAX_DOWN:
        raise call.fault(f"makes {out} channels in {groups} groups at magnification {up}, which cannot be")
    if kernel != width or kernel % 2 == 0 or kernel > MAX_KERNEL:
        raise call.fault(f"needs a square kernel of odd size up to {MAX_KERNEL}, found {kernel}x{width}")
    if call.has("bias"):
        call.tensor("bias", np.float32, (out,))
    return ValueType("float", call.channels(out), whole(up), grown(value, kernel))


def conv2d(
    value: np.ndarray, *, weight: np.ndarray, bias: np.ndarray | None = None, groups: int = 1, stride: int = 1
) -> np.ndarray:
    """Float convolution: acc = bias (or 0); for each tap row by row, each channel: acc = fma(x, w, acc).

    Taps beyond the border count with x = 0, as in a map with a border of zeros. Output channels of
    group g read the channels of group g alone. The size is a multiple of `stride`.
    """
    height, width, _ = value.shape
    out, channels, kernel, _ = weight.shape
    half = kernel // 2
    padded = np.pad(value, ((half, half), (half, half), (0, 0)))
    total = np.zeros((height // stride, width // stride, out), dtype=np.float32)
    if bias is not None:
        total += bias
    for row in range(kernel):
        for column in range(kernel):
            tap = padded[row : row + height : stride, column : column + width : stride]
            for channel in range(channels):
                of_groups = tap[:, :, channel::channels]
                x = of_groups if groups == 1 else np.repeat(of_groups, out // groups, axis=2)
                total = fused_multiply_add(x, weight[:, channel, row, column], total)
    return total


def check_binary_conv2d(call: Call) -> ValueType:
    """binary_conv2d: kernel, alphabet; weight (O, packed bytes), scale (O)."""
    (value,) = call.operands("signs")
    kernel = call.integer("kernel", 1, MAX_KERNEL)
    if kernel % 2 == 0:
        raise call.fault(f"needs a kernel of odd size, found {kernel}")
    weight = call.tensor("weight", np.uint8, (None, packed_filter_bytes(value.channels, kernel)))
    call.tensor("scale", np.float32, (weight.shape[0],))
    call.choice("alphabet", ALPHABETS)
    bits = value.channels * kernel * kernel
    if bits % 8 and np.any(weight[:, -1] >> (bits % 8)):
        raise call.fault("has padding bits that are not 0 in its packed weights")
    return ValueType("float", call.channels(weight.shape[0]), value.up, grown(value, kernel))


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


def _tile_of_floats(node: Node, operands: list[ValueType], arrays: Arrays) -> Tile:
    """i0 groups, i1 channels of a second operand (see engine/fusion.py), i2 stride."""
    groups, stride = int(node.attrs.get("groups", 1)), int(node.attrs.get("stride", 1))
    kernel, one_each = arrays["weight"].shape[2], arrays["weight"].shape[:2] == (groups, 1)
    return Tile(
        kernel_name=None if groups == 1 else "depthwise_conv2d" if one_each else "grouped_conv2d",
        kernel=kernel,
        weights=arrays,
        integers=(groups, 0, stride),
        reach=kernel // 2 if (kernel, stride) != (1, 1) else None,
        zoom=Fraction(1, stride),
    )


def _tile(node: Node, operands: list[ValueType], arrays: Arrays) -> Tile:
    kernel = int(node.attrs["kernel"]) if "kernel" in node.attrs else arrays["weight"].shape[2]
    alphabet = str(node.attrs.get("alphabet", "-1,+1"))
    return Tile(kernel=kernel, alphabet=alphabet, weights=arrays, reach=kernel // 2 if kernel > 1 else None)


OPERATIONS = (
    Operation("conv2d", conv2d, check_conv2d, _tile_of_floats, newer={"groups": 3, "stride": 3}),
    Operation("binary_conv2d", binary_conv2d, check_binary_conv2d, _tile, counts_channels=True),
    Operation("int_conv2d", int_conv2d, tile=_tile, stored=False),
)
