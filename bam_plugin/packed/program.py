"""A packed network made ready for the compiled kernels: buffers laid out, weights repacked, stages filled in.

`Program` serves one model, instruction set and image size. Maps of the body are whole and their buffers are reused as
soon as they are free, in place where a stage reads a map only at the pixel it writes. The tail runs strip by strip, its
maps are windows of a few rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bam_plugin.packed import int_layout, kernels
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.fusion import TileOp, tile_ops
from bam_plugin.packed.graph import INPUT
from bam_plugin.packed.kernels import Isa, Map, Op, Ref, Stage, stride_of
from bam_plugin.packed.precision import INTEGERS
from bam_plugin.packed.reference import words_for
from bam_plugin.packed.stages import StageOps, plan_stages

NOWHERE = Ref(-2, 0)
ALIGNMENT = 64
STRIP_BYTES = 24 << 20  # all windows of the tail together
MIN_STRIP_ROWS = 8
TILES = (48, 36, 30, 24, 18, 12, 8)  # pixels of a tile: MAX_TILE of csrc/tile.h, and less in sixes, as conv_block takes
FLOAT_SLACK = 16  # bytes: a register of colours reads one number too many
SCRATCH_BYTES = 26 << 10  # what a tile's own values may take of the cache next to the core


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


@dataclass(eq=False)
class _Buffer:
    """Memory of a map: bytes (rows, row_bytes); `key` says with which maps it can be shared."""

    data: np.ndarray
    key: tuple[int, ...]


class Weights:
    """Repacked parameters of a model for one instruction set: made once, shared by programs of all sizes."""

    def __init__(self, *, isa: Isa):
        self.isa = isa
        self._made: dict[tuple[int, str], list[np.ndarray]] = {}

    def get_all(self, array: np.ndarray, what: str, make: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
        """As `get` for several arrays that are made together."""
        key = (id(array), what)
        if key not in self._made:
            self._made[key] = [aligned_copy(made) for made in make()]
        return self._made[key]

    def get(self, array: np.ndarray, what: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The result of `make`, kept under the identity of `array` (which the model keeps alive) and `what`."""
        return self.get_all(array, what, lambda: [make()])[0]


class Program:
    """A model ready to run at one image size; `keep` makes every value observable.

    One run at a time: the buffers belong to the program.
    """

    def __init__(self, *, model: PackedModel, weights: Weights, height: int, width: int, keep: bool = False):
        self.model = model
        self.isa = weights.isa
        self.height, self.width = height, width
        self._weights = weights
        self._alive: list[object] = []  # arrays that the structs point into
        self._refs: dict[str, int] = {}  # value -> index of its map
        self._buffers: dict[str, _Buffer] = {}
        self._maps: list[Map] = []
        types = model.graph.types
        self.plan = plan_stages(model.graph, tile_ops(model.graph, model.tensors, fuse=not keep), keep=keep)
        self._keep = keep
        widest = max(self._row_bytes(name) + self._slack(name) for name in types)
        self._zeros = aligned_zeros(widest)
        self._byte_zeros = aligned_zeros(widest, int_layout.BYTE_ZERO)
        self._alive.append(self._byte_zeros)
        self._strips = self._cut_strips()
        self._add_map(INPUT, self._memory(INPUT, height), height)
        self._lay_out_body()
        self._lay_out_tail()
        self._scratch_bytes = ALIGNMENT
        self._stages = (Stage * len(self.plan.stages))()
        for index, stage in enumerate(self.plan.stages):
            self._stages[index] = self._fill_stage(stage)
        self._map_array = (Map * len(self._maps))(*self._maps)

    # Layout of maps

    def _pixel_bytes(self, name: str) -> int:
        value = self.model.graph.types[name]
        if value.kind == "signs":
            return 8 * words_for(value.channels)
        if value.kind in INTEGERS:
            return (1 if self._in_bytes(name) else 2) * int_layout.int_stride(value.channels)
        return 4 * stride_of(value.channels)

    def _in_bytes(self, name: str) -> bool:
        return self.model.graph.types[name].kind == "int8" and self.isa.dot_bytes

    def _slack(self, name: str) -> int:
        """Bytes behind a map that may be read, whatever they hold."""
        is_integer = self.model.graph.types[name].kind in INTEGERS
        return int_layout.SLACK_PIXELS * self._pixel_bytes(name) if is_integer else 0

    def _memory(self, name: str, rows: int) -> np.ndarray:
        """Memory for so many rows of a value, full of zeros."""
        size = rows * self._row_bytes(name) + max(self._slack(name), FLOAT_SLACK)
        return aligned_zeros(size, int_layout.BYTE_ZERO if self._in_bytes(name) else 0)

    def _row_bytes(self, name: str) -> int:
        up = self.model.graph.types[name].up
        return (self.width * up + 2 * self.plan.pads.get(name, 0)) * self._pixel_bytes(name)

    def _add_map(self, name: str, data: np.ndarray, rows: int) -> None:
        value = self.model.graph.types[name]
        row_bytes = self._row_bytes(name)
        assert data.dtype == np.uint8 and data.size >= rows * row_bytes
        self._refs[name] = len(self._maps)
        self._buffers[name] = _Buffer(data, self._geometry(name, rows))
        self._maps.append(
            Map(
                data=data.ctypes.data,
                zeros=(self._byte_zeros if self._in_bytes(name) else self._zeros).ctypes.data,
                row_stride=row_bytes,
                pixel_stride=self._pixel_bytes(name),
                row0=0,
                height=self.height * value.up,
                width=self.width * value.up,
                pad=self.plan.pads.get(name, 0),
            )
        )

    def _geometry(self, name: str, rows: int) -> tuple[int, ...]:
        """Maps with equal geometry can take each other's buffer: the zeros at the ends of rows stay zeros."""
        value = self.model.graph.types[name]
        kind = ("float", "signs", *INTEGERS).index(value.kind)
        return (kind, value.channels, value.up, self.plan.pads.get(name, 0), rows)

    def _lay_out_body(self) -> None:
        free: list[_Buffer] = []
        plan = self.plan
        for at, stage in enumerate(plan.stages[: plan.tail]):
            dying = [name for name in self._buffers if plan.last_use.get(name) == at and name != INPUT]
            if self._keep:
                dying = []
            for name in stage.whole:
                rows = self.height * self.model.graph.types[name].up
                key = self._geometry(name, rows)
                ready = free + [self._buffers[old] for old in dying if plan.may_overwrite(at, old, name)]
                reused = next((buffer for buffer in ready if buffer.key == key), None)
                if reused is None or name == self.model.graph.output:
                    self._add_map(name, self._memory(name, rows), rows)
                    continue
                self._add_map(name, reused.data, rows)
                free = [buffer for buffer in free if buffer is not reused]
                dying = [old for old in dying if self._buffers[old] is not reused]
            free += [self._buffers[old] for old in dying]

    def _lay_out_tail(self) -> None:
        plan, graph = self.plan, self.model.graph
        tallest = [max(last - first for first, last in spans) for spans in zip(*self._strips, strict=True)]
        for stage, rows in zip(plan.stages[plan.tail :], tallest, strict=False):
            for name in stage.whole:
                ratio = graph.types[name].up // stage.up
                total = self.height * graph.scale if name == graph.output else rows * ratio
                self._add_map(name, self._memory(name, total), total)

    def _cut_strips(self) -> list[list[tuple[int, int]]]:
        """Row spans of the tail's stages, strip by strip; one empty list where there is no tail."""
        plan, graph = self.plan, self.model.graph
        tail = plan.stages[plan.tail :]
        windows = [name for stage in tail for name in stage.whole if name != graph.output]
        row = sum(self._row_bytes(name) * graph.types[name].up for name in windows)
        rows = max(MIN_STRIP_ROWS, STRIP_BYTES // max(1, row))
        starts = range(0, self.height, rows)
        return [plan.strip_rows(graph, self.height, y, min(self.height, y + rows)) for y in starts]

    # Operations

    def _fill_stage(self, stage: StageOps) -> Stage:
        for tile in TILES:
            offsets, size = self._lay_out_scratch(stage, tile)
            if size <= SCRATCH_BYTES or tile == TILES[-1]:
                break
        self._scratch_bytes = max(self._scratch_bytes, size)
        ops = (Op * len(stage.ops))()
        for index, op in enumerate(stage.ops):
            self._fill_op(ops[index], op, offsets)
        self._alive.append(ops)
        return Stage(ops, len(stage.ops), self.width * stage.up, 0, self.height * stage.up, tile)

    def _lay_out_scratch(self, stage: StageOps, tile: int) -> tuple[dict[str, int], int]:
        """First-fit offsets of the values that stay in the tile."""
        last = {name: index for index, op in enumerate(stage.ops) for name in op.inputs + op.outputs}
        live: dict[str, tuple[int, int]] = {}
        offsets: dict[str, int] = {}
        top = 0
        for index, op in enumerate(stage.ops):
            for name in op.outputs:
                if name in self._refs:
                    continue
                size = -(-(tile * self._pixel_bytes(name) + self._slack(name)) // ALIGNMENT) * ALIGNMENT
                old = next((old for old in op.overwritable() if last[old] == index and old in live), None)
                if old is not None and name == op.out0 and live[old][1] - live[old][0] >= size:
                    live[name] = live.pop(old)
                    offsets[name] = live[name][0]
                    continue
                at = 0
                for start, end in sorted(live.values()):
                    if start - at >= size:
                        break
                    at = max(at, end)
                live[name] = (at, at + size)
                offsets[name] = at
                top = max(top, at + size)
            live = {name: span for name, span in live.items() if last[name] > index}
        return offsets, top

    def _pointer(self, array: np.ndarray) -> int:
        assert array.flags.c_contiguous
        self._alive.append(array)
        return array.ctypes.data

    def _fill_op(self, filled: Op, op: TileOp, offsets: dict[str, int]) -> None:
        types, weights, lanes = self.model.graph.types, self._weights, self.isa.lanes

        def ref(name: str | None) -> Ref:
            if name is None:
                return NOWHERE
            return Ref(self._refs[name], 0) if name in self._refs else Ref(-1, offsets[name])

        source, result = types[op.in0], types[op.outputs[0]]
        filled.code, filled.kernel = op.code, op.kernel
        filled.in_channels, filled.out_channels = source.channels, result.channels
        filled.in0, filled.in1, filled.out0, filled.out1 = ref(op.in0), ref(op.in1), ref(op.out0), ref(op.out1)
        for index, value in enumerate(op.floats):
            setattr(filled, f"f{index}", value)
        for index, value in enumerate(op.integers):
            setattr(filled, f"i{index}", value)
        arrays = op.arrays

        def padded(role: str, fill: float = 0) -> int:
            array = arrays[role]
            return self._pointer(weights.get(array, role, lambda: kernels.padded_channels(array, lanes, fill)))

        if op.code == kernels.BINARY_CONV:
            weight = arrays["weight"]
            shape = (op.kernel, source.channels, lanes)
            filled.p0 = self._pointer(weights.get(weight, "words", lambda: kernels.repack_binary(weight, *shape)))
            scale = kernels.binary_scale(arrays["scale"], op.alphabet)
            filled.p1 = self._pointer(
                weights.get(arrays["scale"], op.alphabet, lambda: kernels.padded_channels(scale, lanes))
            )
            row_index, rows = kernels.border_classes(self.height * source.up, op.kernel)
            column_index, columns = kernels.border_classes(self.width * source.up, op.kernel)
            base = weights.get(
                weight,
                f"base {rows} {columns}",
                lambda: kernels.border_bases(weight, *shape, rows, columns, op.alphabet),
            )
            filled.p2, filled.p3, filled.p4 = map(self._pointer, (base, row_index, column_index))
            filled.i0, filled.i1 = len(columns), kernels.patch_words(op.kernel, source.channels)
        elif op.code == kernels.CONV:
            weight = arrays["weight"]
            bias = arrays.get("bias", np.zeros(len(weight), dtype=np.float32))
            order = int_layout.channel_order(len(weight), op.spread)
            key = f"by {op.spread}"
            filled.p0 = self._pointer(weights.get(weight, key, lambda: kernels.repack_conv(weight[order], self.isa)))
            filled.p1 = self._pointer(
                weights.get(weight, f"bias {key}", lambda: kernels.padded_channels(bias[order], lanes))
            )
        elif op.code == kernels.INT_CONV:
            self._fill_int_conv(filled, op)
        elif op.code == kernels.QUANTIZE:
            filled.p0, filled.i0 = padded("inverse"), self._in_bytes(op.outputs[0])
        elif op.code == kernels.SHUFFLE:
            filled.i2 = 4 if source.kind == "float" else 1 if self._in_bytes(op.in0) else 2
        elif op.code == kernels.PRELU:
            filled.p0 = padded("slope")
        elif op.code == kernels.AFFINE:
            filled.p0, filled.p1 = padded("scale"), padded("shift")
        elif op.code == kernels.RESIZE:
            filled.p0, filled.p1 = self._pointer(arrays["offsets"]), self._pointer(arrays["weights"])
        if "threshold" in arrays:
            flip = arrays["flip"]
            filled.p5 = padded("threshold", np.inf)
            filled.p6 = self._pointer(weights.get(flip, "flips", lambda: kernels.flip_words(flip)))

    def _fill_int_conv(self, filled: Op, op: TileOp) -> None:
        arrays, isa = op.arrays, self.isa
        weight, in_bytes = arrays["weight"], self._in_bytes(op.in0)
        order = int_layout.channel_order(len(weight), op.spread)
        group = 1 if op.out1 else int_layout.group_of(len(weight), isa.lanes)
        names = ("words", "scale", "start", "bias")

        def make() -> list[np.ndarray]:
            in_order = {role: arrays[role][order] for role in ("weight", "scale", "bias")}
            made = int_layout.lay_out(**in_order, isa=isa, group=group, as_bytes=in_bytes)
            return [getattr(made, name) for name in names]

        made = self._weights.get_all(weight, f"{names} {group} {op.spread}", make)
        filled.p0, filled.p1, filled.p2, filled.p3 = map(self._pointer, made)
        filled.i0, filled.i1 = in_bytes, group
        if op.out1:
            inverse = arrays["inverse"]
            filled.p4 = self._pointer(
                self._weights.get(
                    inverse, f"by {op.spread}", lambda: kernels.padded_channels(inverse[order], isa.lanes)
                )
            )

    # Running

    def _view(self, name: str) -> np.ndarray:
        """The map of a value as (H, W, stride) floats or words, without its padding pixels."""
        value = self.model.graph.types[name]
        height, width, pad = self.height * value.up, self.width * value.up, self.plan.pads.get(name, 0)
        rows = self._buffers[name].data[: height * self._row_bytes(name)]
        in_bytes = self._in_bytes(name)
        dtype = {"signs": np.uint64, "float": np.float32}.get(value.kind, np.uint8 if in_bytes else np.int16)
        return rows.view(dtype).reshape(height, width + 2 * pad, -1)[:, pad : pad + width]

    def value(self, name: str) -> np.ndarray:
        """A copy of a value after a run: floats (H, W, C), words, or int16 (H, W, C)."""
        value = self.model.graph.types[name]
        view = self._view(name)
        if value.kind == "signs":
            return view.copy()
        view = view[:, :, : value.channels]
        return view - np.int16(int_layout.BYTE_ZERO) if self._in_bytes(name) else view.copy()

    def run(self, image: np.ndarray, threads: int) -> np.ndarray:
        """float32 (H, W, C) of the program's size -> float32 (H * scale, W * scale, C_out), a copy."""
        assert image.shape == (self.height, self.width, self.model.num_in_ch) and image.dtype == np.float32
        self._view(INPUT)[:, :, : image.shape[2]] = image
        self.run_body(threads)
        self.run_tail(threads)
        return self.value(self.model.graph.output)

    def _scratch(self, threads: int) -> np.ndarray:
        bytes_each = -(-self._scratch_bytes // 4096) * 4096
        return aligned_zeros(threads * bytes_each).reshape(threads, bytes_each)

    def run_body(self, threads: int) -> None:
        """The stages up to the last binary convolution, on the image of the last `run`."""
        tail = self.plan.tail
        if tail:
            body = (Stage * tail)(*self._stages[:tail])
            kernels.run_stages(self.isa, body, self._map_array, self._scratch(threads), threads)

    def run_tail(self, threads: int) -> None:
        """The stages behind the last binary convolution, strip by strip."""
        if self.plan.tail < len(self._stages):
            scratch = self._scratch(threads)
            for spans in self._strips:
                self._run_strip(spans, scratch, threads)

    def _run_strip(self, spans: list[tuple[int, int]], scratch: np.ndarray, threads: int) -> None:
        plan, graph = self.plan, self.model.graph
        stages = (Stage * len(spans))()
        for index, (begin, end) in enumerate(spans):
            stage = plan.stages[plan.tail + index]
            ctypes.pointer(stages[index])[0] = self._stages[plan.tail + index]
            stages[index].row_begin, stages[index].row_end = begin, end
            for name in stage.whole:
                if name != graph.output:
                    self._map_array[self._refs[name]].row0 = begin * (graph.types[name].up // stage.up)
        kernels.run_stages(self.isa, stages, self._map_array, scratch, threads)
