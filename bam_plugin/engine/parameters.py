"""Parameters of operations for the compiled kernels: repacked, padded, at the start of cache lines.

`Weights` keeps them per model and instruction set, whatever the image size; `Filler` puts their addresses into the
structs of csrc/bam.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bam_plugin.engine import int_layout, kernels
from bam_plugin.engine.fusion import CONVOLUTIONS, TileOp
from bam_plugin.engine.kernels import Isa, Op
from bam_plugin.packed.graph import ValueType

ALIGNMENT = 64


def aligned_zeros(size: int, fill: int = 0) -> np.ndarray:
    """uint8 zeros (or other numbers) whose address is a multiple of a cache line."""
    raw = np.full(size + ALIGNMENT, fill, dtype=np.uint8) if fill else np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """The array again in C order, at the start of a cache line, so that no register is loaded from two lines."""
    copy = aligned_zeros(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Weights:
    """Repacked parameters of a model for one instruction set: made once, shared by programs of all sizes."""

    def __init__(self, *, isa: Isa):
        self.isa = isa
        self._made: dict[tuple[object, ...], list[np.ndarray]] = {}
        self._owners: dict[int, np.ndarray] = {}  # alive, so that no other array gets their identity

    def get_all(
        self, owners: tuple[np.ndarray, ...], what: str, make: Callable[[], list[np.ndarray]]
    ) -> list[np.ndarray]:
        """The results of `make`, kept under the identities of the arrays that they depend on and `what` else."""
        key = (*map(id, owners), what)
        if key not in self._made:
            self._owners.update((id(owner), owner) for owner in owners)
            self._made[key] = [aligned_copy(made) for made in make()]
        return self._made[key]

    def get(self, owner: np.ndarray, what: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """As `get_all` for one result that is made from one array."""
        return self.get_all((owner,), what, lambda: [make()])[0]


class Filler:
    """Fills in the parameters of operations for images of one size.

    `types`: value -> its type. It appends arrays that the structs point into to `alive`, whose owner must live as
    long as the structs.
    """

    def __init__(
        self, *, weights: Weights, types: Mapping[str, ValueType], height: int, width: int, alive: list[object]
    ):
        self._weights, self._isa, self._types = weights, weights.isa, types
        self._height, self._width = height, width
        self._alive = alive
        self._layouts: dict[str, Callable[[Op, TileOp], None]] = {
            "binary_conv2d": self._binary_conv,
            "conv2d": self._conv,
            "depthwise_conv2d": self._depthwise_conv,
            "grouped_conv2d": self._grouped_conv,
            "int_conv2d": self._int_conv,
            "quantize": self._quantize,
            "pixel_shuffle": self._shuffle,
        }

    def fill(self, filled: Op, op: TileOp) -> None:
        """Set everything but the operands of `filled`."""
        filled.code, filled.kernel = kernels.operation_codes()[op.kind], op.kernel
        filled.in_channels = self._types[op.in0].channels
        filled.out_channels = self._types[op.outputs[0]].channels
        for index, value in enumerate(op.floats):
            setattr(filled, f"f{index}", value)
        for index, value in enumerate(op.integers):
            setattr(filled, f"i{index}", value)
        if op.kind not in CONVOLUTIONS:
            pointers = [self._channels(array, role, array) for role, array in op.channels.items()]
            pointers += map(self._pointer, op.tables.values())
            for index, pointer in enumerate(pointers):
                setattr(filled, f"p{index}", pointer)
        if op.kind in self._layouts:
            self._layouts[op.kind](filled, op)
        if op.signs:
            limits, flip = op.signs["threshold"], op.signs["flip"]
            filled.p5 = self._channels(limits, "threshold", limits, np.inf)
            filled.p6 = self._pointer(self._weights.get(flip, "flips", lambda: kernels.flip_words(flip)))

    def _in_bytes(self, name: str) -> bool:
        return int_layout.in_bytes(self._types[name].kind, self._isa)

    def _pointer(self, array: np.ndarray) -> int:
        assert array.flags.c_contiguous
        self._alive.append(array)
        return array.ctypes.data

    def _channels(self, owner: np.ndarray, what: str, values: np.ndarray, fill: float = 0) -> int:
        """Address of one number per channel, kept under `owner` and `what`."""
        made = self._weights.get(owner, what, lambda: kernels.padded_channels(values, self._isa.lanes, fill))
        return self._pointer(made)

    def _binary_conv(self, filled: Op, op: TileOp) -> None:
        source, weight, scale = self._types[op.in0], op.weights["weight"], op.weights["scale"]
        shape = (op.kernel, source.channels, self._isa.lanes)
        row_index, rows = kernels.border_classes(source.length(self._height), op.kernel)
        column_index, columns = kernels.border_classes(source.length(self._width), op.kernel)
        words = self._weights.get(weight, f"words {shape}", lambda: kernels.repack_binary(weight, *shape))
        base = self._weights.get(
            weight,
            f"base {op.alphabet} {shape} {rows} {columns}",
            lambda: kernels.border_bases(weight, *shape, rows, columns, op.alphabet),
        )
        filled.p0 = self._pointer(words)
        filled.p1 = self._channels(scale, "scale", scale)
        filled.p2, filled.p3, filled.p4 = map(self._pointer, (base, row_index, column_index))
        filled.i0, filled.i1 = len(columns), kernels.patch_words(op.kernel, source.channels)
        filled.i2 = int(op.alphabet == "0,1")

    def _conv(self, filled: Op, op: TileOp) -> None:
        weight = op.weights["weight"]
        order = int_layout.channel_order(len(weight), op.spread)
        key = f"by {op.spread}"
        words = self._weights.get(weight, key, lambda: kernels.repack_conv(weight[order], self._isa))
        filled.p0, filled.p1 = self._pointer(words), self._bias(op, key, order)

    def _bias(self, op: TileOp, key: str, order: np.ndarray) -> int:
        """Address of a convolution's bias, its channels in `order`, which `key` names."""
        if "bias" in op.weights:
            return self._channels(op.weights["bias"], f"bias {key}", op.weights["bias"][order])
        weight = op.weights["weight"]
        return self._channels(weight, "no bias", np.zeros(len(weight), dtype=np.float32))

    def _depthwise_conv(self, filled: Op, op: TileOp) -> None:
        weight = op.weights["weight"]
        words = self._weights.get(weight, "depthwise", lambda: kernels.repack_depthwise(weight, self._isa.lanes))
        filled.p0, filled.p1 = self._pointer(words), self._bias(op, "in order", np.arange(len(weight)))

    def _grouped_conv(self, filled: Op, op: TileOp) -> None:
        weight, groups = op.weights["weight"], op.integers[0]
        bias = op.weights.get("bias", np.zeros(len(weight), dtype=np.float32))
        owners = tuple(op.weights.values())

        def make() -> list[np.ndarray]:
            filters = [kernels.repack_conv(part, self._isa) for part in np.split(weight, groups)]
            biases = [kernels.padded_channels(part, self._isa.lanes) for part in np.split(bias, groups)]
            return [np.concatenate(filters), np.concatenate(biases)]

        filled.p0, filled.p1 = map(self._pointer, self._weights.get_all(owners, f"{groups} groups", make))

    def _int_conv(self, filled: Op, op: TileOp) -> None:
        arrays, isa = op.weights, self._isa
        weight, as_bytes = arrays["weight"], self._in_bytes(op.in0)
        order = int_layout.channel_order(len(weight), op.spread)
        group = 1 if op.out1 else int_layout.group_of(len(weight), isa.lanes)
        names = ("words", "scale", "start", "bias")

        def make() -> list[np.ndarray]:
            in_order = {role: arrays[role][order] for role in ("weight", "scale", "bias")}
            made = int_layout.lay_out(**in_order, isa=isa, group=group, as_bytes=as_bytes)
            return [getattr(made, name) for name in names]

        owners = (weight, arrays["scale"], arrays["bias"])
        made = self._weights.get_all(owners, f"{as_bytes} {group} {op.spread}", make)
        filled.p0, filled.p1, filled.p2, filled.p3 = map(self._pointer, made)
        filled.i0, filled.i1 = as_bytes, group
        if op.out1:
            inverse = op.channels["inverse"]
            filled.p4 = self._channels(inverse, f"by {op.spread}", inverse[order])

    def _quantize(self, filled: Op, op: TileOp) -> None:
        filled.i0 = self._in_bytes(op.outputs[0])

    def _shuffle(self, filled: Op, op: TileOp) -> None:
        filled.i2 = 4 if self._types[op.in0].kind == "float" else 1 if self._in_bytes(op.in0) else 2
