"""How much memory a packed network needs for a tile: what every engine says of itself, and the estimate from a graph.

NumPy kernels hold every map of the moment whole, and copy what a convolution reads. Compiled kernels hold the maps of
the body whole; of the enlarged maps behind it they hold a strip of a few rows, and the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bam_plugin.engine.program import MIN_STRIP_ROWS, STRIP_BYTES
from bam_plugin.packed.graph import Graph, ValueType

PATCHES = 32 << 20  # the patch matrix of a convolution by matrix multiplication, and its product
RESULTS = 3  # the result's map, the copy handed out, and its clipped copy


@dataclass(frozen=True)
class TileMemory:
    """Bytes for a tile: so many for each of its pixels, for each of its columns, and at all (input pixels)."""

    per_pixel: int
    per_column: int
    fixed: int

    def pixels_within(self, memory: int, *, columns: int) -> int:
        """How many pixels a tile of at most `columns` columns may have; at least 1."""
        return max(1, (memory - self.fixed - self.per_column * columns) // self.per_pixel)


def graph_tile_memory(graph: Graph, *, compiled: bool) -> TileMemory:
    """Estimate from above what a graph takes for a tile, in compiled kernels or in NumPy's."""
    result = RESULTS * _size(graph.types[graph.output])
    if compiled:
        return TileMemory(
            per_pixel=_worst(graph, lambda value: _size(value) if value.up <= 1 else 0) + result,
            per_column=MIN_STRIP_ROWS * _worst(graph, lambda value: _size(value) if value.up > 1 else 0),
            fixed=STRIP_BYTES,
        )
    return TileMemory(per_pixel=_worst(graph, _size, copies=1) + result, per_column=0, fixed=PATCHES)


def _worst(graph: Graph, size: Callable[[ValueType], int], *, copies: int = 0) -> int:
    """Bytes alive at the worst node, with that many copies of what it reads and makes (padding, bias)."""
    last_reader = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    last_reader[graph.output] = len(graph.nodes)
    sizes = {name: size(value) for name, value in graph.types.items()}
    worst, alive = 0, set()
    for index, node in enumerate(graph.nodes):
        alive |= {*node.inputs, node.name}
        touched = sum(sizes[name] for name in {*node.inputs, node.name})
        worst = max(worst, sum(sizes[name] for name in alive) + copies * touched)
        alive = {name for name in alive if last_reader.get(name, -1) > index}
    return worst


def _size(value: ValueType) -> int:
    """Bytes of a value for one input pixel; signs count as floats, which they become on the slow path."""
    return math.ceil(value.channels * value.up**2 * 4)
