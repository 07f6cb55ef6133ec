"""The operations on single pixels: activations, sums, signs, means over the channels."""

from __future__ import annotations

import numpy as np

from bam_plugin.packed.bits import bits_to_words
from bam_plugin.packed.graph import Node, ValueType
from bam_plugin.packed.ops.operation import Arrays, Call, Operation, Tile

LANES = 16  # partial sums of a channel mean


def check_threshold(call: Call) -> ValueType:
    """threshold: threshold (C), flip (C) of 0 and 1."""
    (value,) = call.operands("float")
    threshold = call.tensor("threshold", np.float32, (value.channels,))
    flip = call.tensor("flip", np.uint8, (value.channels,))
    if np.isnan(threshold).any() or (flip > 1).any():
        raise call.fault("needs thresholds that are numbers and flips of 0 or 1")
    return ValueType("signs", value.channels, value.up, value.radius)


def threshold(value: np.ndarray, *, threshold: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Sign of a monotone function of each channel: positive where (x >= threshold) XOR flip. Returns words."""
    positive = (value >= threshold) ^ flip.astype(bool)
    return bits_to_words(~positive)


def relu(value: np.ndarray) -> np.ndarray:
    """Take x where x > 0, else +0."""
    return np.where(value > 0, value, np.float32(0))


def check_leaky_relu(call: Call) -> ValueType:
    """leaky_relu: slope."""
    (value,) = call.operands("float")
    call.number("slope")
    return value


def leaky_relu(value: np.ndarray, *, slope: float) -> np.ndarray:
    """Take x where x > 0, else fl(x * slope)."""
    return np.where(value > 0, value, value * np.float32(slope))


def check_prelu(call: Call) -> ValueType:
    """prelu: slope (C)."""
    (value,) = call.operands("float")
    call.tensor("slope", np.float32, (value.channels,))
    return value


def prelu(value: np.ndarray, *, slope: np.ndarray) -> np.ndarray:
    """Take x where x > 0, else fl(x * slope[c])."""
    return np.where(value > 0, value, value * slope)


def check_affine(call: Call) -> ValueType:
    """affine: scale (C), shift (C)."""
    (value,) = call.operands("float")
    call.tensor("scale", np.float32, (value.channels,))
    call.tensor("shift", np.float32, (value.channels,))
    return value


def affine(value: np.ndarray, *, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """fl(fl(x * scale[c]) + shift[c])."""
    return value * scale + shift


def check_two(call: Call) -> ValueType:
    """add, mul: two maps of equal size, of equal channels or one of one channel."""
    left, right = call.operands("float", "float")
    if left.up != right.up or (left.channels != right.channels and 1 not in (left.channels, right.channels)):
        raise call.fault(f"joins maps of different sizes: {left} and {right}")
    channels = max(left.channels, right.channels)
    return ValueType("float", channels, left.up, max(left.radius, right.radius))


def add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """fl(left + right); a map of one channel is added to all channels."""
    return left + right


def mul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """fl(left * right); a map of one channel multiplies all channels."""
    return left * right


def check_cat(call: Call) -> ValueType:
    """cat: two maps of equal size."""
    left, right = call.operands("float", "float")
    if left.up != right.up:
        raise call.fault(f"joins maps of different sizes: {left} and {right}")
    channels = call.channels(left.channels + right.channels)
    return ValueType("float", channels, left.up, max(left.radius, right.radius))


def cat(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The channels of both, those of the left one first."""
    return np.concatenate([left, right], axis=2)


def check_scale(call: Call) -> ValueType:
    """scale: factor."""
    (value,) = call.operands("float")
    call.number("factor")
    return value


def scale(value: np.ndarray, *, factor: float) -> np.ndarray:
    """fl(x * factor)."""
    return value * np.float32(factor)


def check_clamp(call: Call) -> ValueType:
    """clamp: low and high."""
    (value,) = call.operands("float")
    if call.number("low") > call.number("high"):
        raise call.fault("has its attribute low above high")
    return value


def clamp(value: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Take low where x < low, high where x > high, else x."""
    bounded = np.where(value < np.float32(low), np.float32(low), value)
    return np.where(bounded > np.float32(high), np.float32(high), bounded)


def check_channel_mean(call: Call) -> ValueType:
    """channel_mean: statistic."""
    (value,) = call.operands("float")
    call.choice("statistic", ("mean", "mean_abs"))
    return ValueType("float", 1, value.up, value.radius)


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


def quantize(value: np.ndarray, *, inverse: np.ndarray, limit: int) -> np.ndarray:
    """fl(x * inverse[c]) limited to -limit .. limit (NaN: -limit) and rounded to even, as int16."""
    scaled = value * inverse
    above = np.where(scaled > -np.float32(limit), scaled, -np.float32(limit))
    return np.rint(np.where(above < limit, above, np.float32(limit))).astype(np.int16)


def _numbers(*names: str):
    """The tile of an operation whose numbers are attributes, in this order."""

    def tile(node: Node, operands: list[ValueType], arrays: Arrays) -> Tile:
        return Tile(floats=tuple(float(node.attrs[name]) for name in names), channels=arrays)

    return tile


def _tile_of_two(node: Node, operands: list[ValueType], arrays: Arrays) -> Tile:
    """The wider map comes first; i0 = 1 where the other has one channel and serves them all."""
    left, right = (value.channels for value in operands)
    return Tile(swap=right > left, integers=(int(left != right),))


def _tile_of_cat(node: Node, operands: list[ValueType], arrays: Arrays) -> Tile:
    return Tile(integers=(operands[1].channels,))


def _tile_of_mean(node: Node, operands: list[ValueType], arrays: Arrays) -> Tile:
    inverse = float(np.float32(1 / operands[0].channels))
    return Tile(floats=(inverse,), integers=(int(node.attrs["statistic"] == "mean_abs"),))


OPERATIONS = (
    Operation("threshold", threshold, check_threshold),
    Operation("relu", relu),
    Operation("leaky_relu", leaky_relu, check_leaky_relu, _numbers("slope")),
    Operation("prelu", prelu, check_prelu),
    Operation("affine", affine, check_affine),
    Operation("add", add, check_two, _tile_of_two),
    Operation("mul", mul, check_two, _tile_of_two),
    Operation("cat", cat, check_cat, _tile_of_cat, version=3),
    Operation("scale", scale, check_scale, _numbers("factor")),
    Operation("clamp", clamp, check_clamp, _numbers("low", "high")),
    Operation("channel_mean", channel_mean, check_channel_mean, _tile_of_mean),
    Operation("quantize", quantize, tile=_numbers("limit"), stored=False),
)
