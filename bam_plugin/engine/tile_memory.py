"""The memory that a packed network needs for a tile: the record of every engine, and the estimate from a graph.

NumPy kernels hold every map of the moment whole, and copy what a convolution reads. Compiled kernels hold the maps of
the body whole; of the enlarged maps behind it they hold a strip of a few rows, and the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from bam_plugin.engine.buffers import share_buffers
from bam_plugin.engine.fusion import tile_ops
from bam_plugin.engine.kernels import stride_of
from bam_plugin.engine.program import KEPT_BYTES, MIN_STRIP_ROWS, STRIP_BYTES
from bam_plugin.engine.tile_stages import plan_stages
from bam_plugin.packed.bits import words_for
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import INPUT, Graph, ValueType

PATCHES = 32 << 20  # the patch matrix of a convolution by matrix multiplication, and its product
RESULTS = 3  # the result's map, the copy handed out, and its clipped copy


@dataclass(frozen=True)
class TileMemory:
    """Bytes for a tile: for each of its input pixels, for each of its columns, and a constant."""

    per_pixel: int
    per_column: int
    fixed: int

    def pixels_within(self, memory: int, *, columns: int) -> int:
        """The number of pixels that a tile of at most `columns` columns may have, at least 1."""
        return max(1, (memory - self.fixed - self.per_column * columns) // self.per_pixel)


def graph_tile_memory(model: PackedModel, *, compiled: bool) -> TileMemory:
    """Estimate from above the memory of a graph for a tile, in compiled kernels or in NumPy's."""
    graph = model.graph
    result = RESULTS * _size(graph.types[graph.output])
    if not compiled:
        return TileMemory(per_pixel=_worst(graph) + result, per_column=0, fixed=PATCHES)
    plan = plan_stages(graph, tile_ops(graph, model.tensors))
    body = [INPUT, *share_buffers(plan, graph).first]
    per_column = Fraction(0)
    spans = plan.strip_rows(graph, 1 << 20, 1 << 19, (1 << 19) + MIN_STRIP_ROWS)  # far from the borders
    for stage, (begin, end) in zip(plan.stages[plan.tail :], spans, strict=True):
        for name in stage.whole:
            if name != graph.output:
                value = graph.types[name]
                per_column += Fraction((end - begin) * _compiled_size(value)) / stage.up
    return TileMemory(
        per_pixel=sum(_compiled_size(graph.types[name]) for name in body) + result,
        per_column=math.ceil(per_column),
        fixed=STRIP_BYTES + KEPT_BYTES,
    )


def _worst(graph: Graph) -> int:
    """Bytes alive at the worst node, with a copy of what it reads and makes (padding, bias)."""
    last_reader = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    last_reader[graph.output] = len(graph.nodes)
    sizes = {name: _size(value) for name, value in graph.types.items()}
    worst, alive = 0, sizes[INPUT]
    for index, node in enumerate(graph.nodes):
        touched = {*node.inputs, node.name}
        alive += sizes[node.name]
        worst = max(worst, alive + sum(sizes[name] for name in touched))
        alive -= sum(sizes[name] for name in touched if last_reader.get(name, -1) <= index)
    return worst


def _size(value: ValueType) -> int:
    """Bytes of a value for one input pixel; signs count as floats, which they become on the slow path."""
    return math.ceil(value.channels * value.up**2 * 4)


def _compiled_size(value: ValueType) -> int:
    """The same in the layout of the kernels."""
    pixel = 8 * words_for(value.channels) if value.kind == "signs" else 4 * stride_of(value.channels)
    return math.ceil(pixel * value.up**2)
