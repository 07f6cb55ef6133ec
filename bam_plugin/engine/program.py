"""Prepare a packed network for the compiled kernels: buffers and stages.

`Program` serves one model, instruction set and image size. Maps of the body are whole, and their buffers are used again
as soon as they are free. A stage writes in place if it reads a map only at the pixel that it writes. The tail runs
strip by strip, and its maps are windows of a few rows.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from bam_plugin.engine import int_layout, kernels
from bam_plugin.engine.buffers import scratch_layout, share_buffers
from bam_plugin.engine.fusion import tile_ops
from bam_plugin.engine.kernels import Map, Op, Ref, Stage, layout, stride_of
from bam_plugin.engine.parameters import ALIGNMENT, Filler, Weights, aligned_zeros
from bam_plugin.engine.tile_stages import StageOps, plan_stages
from bam_plugin.packed.bits import words_for
from bam_plugin.packed.errors import EngineError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import INPUT
from bam_plugin.packed.precision import INTEGERS

NOWHERE = Ref(0, -2)
STRIP_BYTES = 24 << 20  # all windows of the tail together
MIN_STRIP_ROWS = 8
KEPT_BYTES = 32 << 20  # buffers of programs for other picture sizes that an engine keeps
SMALLER_TILES = (36, 30, 24, 18, 12, 8)  # pixels of a tile less than the most: in sixes, as conv_block takes them
SCRATCH_BYTES = 26 << 10  # what a tile's own values should take of the cache next to the core
MAX_SCRATCH_BYTES = 64 << 20  # what they may take: forged files ask for more than there is
MAX_PIXEL_BYTES = 16 << 20  # what the maps of the body may take for one pixel of the picture


class Program:
    """A model ready to run at one image size; `keep` makes every value observable.

    It does one run at a time, because the buffers belong to the program.
    """

    def __init__(self, *, model: PackedModel, weights: Weights, height: int, width: int, keep: bool = False):
        self.model = model
        self.isa = weights.isa
        self.height, self.width = height, width
        self._alive: list[object] = []  # arrays that the structs point into
        self._refs: dict[str, int] = {}  # value -> index of its map
        self._buffers: dict[str, np.ndarray] = {}  # value -> bytes of its map, which others may share
        self._maps: list[Map] = []
        types = model.graph.types
        self._filler = Filler(weights=weights, types=types, height=height, width=width, alive=self._alive)
        self.plan = plan_stages(model.graph, tile_ops(model.graph, model.tensors, fuse=not keep), keep=keep)
        self._keep = keep
        widest = max(self._row_bytes(name) + self._slack(name) for name in types)
        self._zeros = aligned_zeros(widest)
        self._byte_zeros = aligned_zeros(widest, layout().byte_zero)
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
        self.bytes = sum({buffer.ctypes.data: buffer.nbytes for buffer in self._buffers.values()}.values())

    # Layout of maps

    def _pixel_bytes(self, name: str) -> int:
        value = self.model.graph.types[name]
        if value.kind == "signs":
            return 8 * words_for(value.channels)
        if value.kind in INTEGERS:
            return (1 if self._in_bytes(name) else 2) * int_layout.int_stride(value.channels)
        return 4 * stride_of(value.channels)

    def _in_bytes(self, name: str) -> bool:
        return int_layout.in_bytes(self.model.graph.types[name].kind, self.isa)

    def _slack(self, name: str) -> int:
        """Bytes behind a map that the kernels may read and do not use."""
        is_integer = self.model.graph.types[name].kind in INTEGERS
        return layout().slack_pixels * self._pixel_bytes(name) if is_integer else 0

    def _memory(self, name: str, rows: int) -> np.ndarray:
        """Memory for a number of rows of a value, full of zeros."""
        size = rows * self._row_bytes(name) + max(self._slack(name), layout().float_slack)
        return aligned_zeros(size, layout().byte_zero if self._in_bytes(name) else 0)

    def _row_bytes(self, name: str) -> int:
        width = self.model.graph.types[name].length(self.width)
        return (width + 2 * self.plan.pads.get(name, 0)) * self._pixel_bytes(name)

    def _add_map(self, name: str, data: np.ndarray, rows: int) -> None:
        value = self.model.graph.types[name]
        row_bytes = self._row_bytes(name)
        assert data.dtype == np.uint8 and data.size >= rows * row_bytes
        self._refs[name] = len(self._maps)
        self._buffers[name] = data
        self._maps.append(
            Map(
                data=data.ctypes.data,
                zeros=(self._byte_zeros if self._in_bytes(name) else self._zeros).ctypes.data,
                row_stride=row_bytes,
                pixel_stride=self._pixel_bytes(name),
                row0=0,
                height=value.length(self.height),
                width=value.length(self.width),
                pad=self.plan.pads.get(name, 0),
            )
        )

    def _lay_out_body(self) -> None:
        types = self.model.graph.types
        shared = share_buffers(self.plan, self.model.graph, keep=self._keep)
        each = sum(types[name].channels * types[name].up ** 2 * 4 for name in shared.first)
        if each > MAX_PIXEL_BYTES:
            raise EngineError(
                f"the network holds {int(each)} bytes for a pixel of the picture; the limit is {MAX_PIXEL_BYTES}"
            )
        memory = [self._memory(name, types[name].length(self.height)) for name in shared.first]
        for name, number in shared.number.items():
            self._add_map(name, memory[number], types[name].length(self.height))

    def _lay_out_tail(self) -> None:
        plan, graph = self.plan, self.model.graph
        tallest = [max(last - first for first, last in spans) for spans in zip(*self._strips, strict=True)]
        for stage, rows in zip(plan.stages[plan.tail :], tallest, strict=False):
            for name in stage.whole:
                ratio = int(graph.types[name].up // stage.up)
                total = self.height * graph.scale if name == graph.output else rows * ratio
                self._add_map(name, self._memory(name, total), total)

    def _cut_strips(self) -> list[list[tuple[int, int]]]:
        """Row spans of the tail's stages, strip by strip; one empty list if there is no tail."""
        plan, graph = self.plan, self.model.graph
        tail = plan.stages[plan.tail :]
        windows = [name for stage in tail for name in stage.whole if name != graph.output]
        row = sum(self._row_bytes(name) * graph.types[name].up for name in windows)
        rows = max(MIN_STRIP_ROWS, int(STRIP_BYTES // max(1, row)))
        starts = range(0, self.height, rows)
        return [plan.strip_rows(graph, self.height, y, min(self.height, y + rows)) for y in starts]

    # Operations

    def _fill_stage(self, stage: StageOps) -> Stage:
        for tile in (layout().max_tile, *SMALLER_TILES):
            offsets, size = scratch_layout(
                stage, lambda name: name not in self._refs, functools.partial(self._tile_bytes, tile=tile)
            )
            if size <= SCRATCH_BYTES or tile == SMALLER_TILES[-1]:
                break
        if size > MAX_SCRATCH_BYTES:
            raise EngineError(
                f"the network holds {size} bytes for a tile of {tile} pixels; the limit is {MAX_SCRATCH_BYTES}"
            )
        self._scratch_bytes = max(self._scratch_bytes, size)
        ops = (Op * len(stage.ops))()
        for filled, op in zip(ops, stage.ops, strict=True):
            self._filler.fill(filled, op)
            filled.in0, filled.in1 = self._ref(op.in0, offsets), self._ref(op.in1, offsets)
            filled.out0, filled.out1 = self._ref(op.out0, offsets), self._ref(op.out1, offsets)
        self._alive.append(ops)
        return Stage(ops, len(stage.ops), int(self.width * stage.up), 0, int(self.height * stage.up), tile)

    def _tile_bytes(self, name: str, tile: int) -> int:
        """Bytes of a value in a tile, in whole cache lines."""
        return -(-(tile * self._pixel_bytes(name) + self._slack(name)) // ALIGNMENT) * ALIGNMENT

    def _ref(self, name: str | None, offsets: dict[str, int]) -> Ref:
        if name is None:
            return NOWHERE
        return Ref(0, self._refs[name]) if name in self._refs else Ref(offsets[name], -1)

    # Running

    def _view(self, name: str) -> np.ndarray:
        """The map of a value as (H, W, stride) floats or words, without its padding pixels."""
        value = self.model.graph.types[name]
        height, width, pad = value.length(self.height), value.length(self.width), self.plan.pads.get(name, 0)
        rows = self._buffers[name][: height * self._row_bytes(name)]
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
        return view - np.int16(layout().byte_zero) if self._in_bytes(name) else view.copy()

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
                    self._map_array[self._refs[name]].row0 = begin * int(graph.types[name].up // stage.up)
        kernels.run_stages(self.isa, stages, self._map_array, scratch, threads)
