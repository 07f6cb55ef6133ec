"""The operations that change the size of a map: pixel shuffle and interpolation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from bam_plugin.packed.graph import Node, ValueType
from bam_plugin.packed.ops.operation import MAX_UP, Arrays, Call, Operation, Tile, whole

CUBIC = -0.75  # the bicubic coefficient of PyTorch and OpenCV, for files that state none
_REACH = {"nearest": 0, "bilinear": 1, "bicubic": 2}  # pixels of the operand around a pixel of the result


def check_pixel_shuffle(call: Call) -> ValueType:
    """pixel_shuffle: factor."""
    (value,) = call.operands("float")
    factor = call.integer("factor", 1, MAX_UP)
    if value.channels % factor**2 or value.up * factor > MAX_UP:
        raise call.fault(f"cannot rearrange {value.channels} channels at magnification {value.up} by {factor}")
    return ValueType("float", value.channels // factor**2, whole(value.up * factor), value.radius)


def pixel_shuffle(value: np.ndarray, *, factor: int) -> np.ndarray:
    """out[y * r + i, x * r + j, c] = in[y, x, c * r * r + i * r + j], as torch.nn.PixelShuffle."""
    height, width, channels = value.shape
    blocks = value.reshape(height, width, channels // factor**2, factor, factor)
    return blocks.transpose(0, 3, 1, 4, 2).reshape(height * factor, width * factor, channels // factor**2)


def check_resize(call: Call) -> ValueType:
    """resize: factor, mode; coefficient of a bicubic mode, where it is not that of PyTorch."""
    (value,) = call.operands("float")
    factor = call.integer("factor", 1, MAX_UP)
    mode = call.choice("mode", tuple(_REACH))
    reach = _REACH[mode]
    if "coefficient" in call.node.attrs and (mode != "bicubic" or not -2 <= call.number("coefficient") < 0):
        raise call.fault("has a coefficient that is not one of bicubic interpolation, from -2 to 0")
    if call.node.attrs.get("coefficient") == CUBIC:
        raise call.fault(f"states the coefficient {CUBIC}, which is left out")
    if value.up * factor > MAX_UP:
        raise call.fault(f"magnifies by more than {MAX_UP}")
    return ValueType("float", value.channels, whole(value.up * factor), value.radius + Fraction(reach) / value.up)


def resize_taps(mode: str, factor: int, coefficient: float = CUBIC) -> tuple[np.ndarray, np.ndarray]:
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
    a = coefficient
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = np.where(distance <= 1, near, far)
    return base.astype(np.int64) - 1, weights.astype(np.float32)


def _resize_axis(value: np.ndarray, axis: int, factor: int, mode: str, coefficient: float) -> np.ndarray:
    size = value.shape[axis]
    offsets, weights = resize_taps(mode, factor, coefficient)
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


def resize(value: np.ndarray, *, factor: int, mode: str, coefficient: float = CUBIC) -> np.ndarray:
    """Magnify by an integer factor as torch does with align_corners=False; along x first, then along y.

    `coefficient`: the a of Keys' bicubic kernel, -0.5 in MATLAB.
    Along each axis the terms fl(weight * x) are added from the lowest input index to the highest.
    """
    return _resize_axis(_resize_axis(value, 1, factor, mode, coefficient), 0, factor, mode, coefficient)


def _tile_of_shuffle(node: Node, operands: list[ValueType], arrays: Arrays) -> Tile:
    return Tile(integers=(int(node.attrs["factor"]), 0))


def _tile_of_resize(node: Node, operands: list[ValueType], arrays: Arrays) -> Tile:
    factor = int(node.attrs["factor"])
    offsets, weights = resize_taps(str(node.attrs["mode"]), factor, float(node.attrs.get("coefficient", CUBIC)))
    tables = {"offsets": offsets.astype(np.int32), "weights": weights}
    return Tile(integers=(factor, weights.shape[1]), tables=tables, reach=2, zoom=factor)


OPERATIONS = (
    Operation("pixel_shuffle", pixel_shuffle, check_pixel_shuffle, _tile_of_shuffle),
    Operation("resize", resize, check_resize, _tile_of_resize, newer={"coefficient": 3}),
)
