"""Cut a network into stages: runs of operations that a tile passes while it stays in the cache.

If an operation reads a value at neighbouring pixels, the value must be whole before. So a spatial operation opens a new
stage, and a pointwise one joins the stage of its latest operand. Values that leave their stage are maps. All others
live in the scratch memory of a tile. The stages behind the last binary convolution (the tail, whose maps are large) can
run strip by strip; `StagePlan.strip_rows` says which rows each stage must make for a strip of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from bam_plugin.engine.fusion import CONVOLUTIONS, TileOp
from bam_plugin.packed.graph import INPUT, Graph, ValueType


@dataclass
class StageOps:
    """One stage: `up` is the magnification at which it runs, `whole` names the maps that it makes."""

    up: int | Fraction
    ops: list[TileOp] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)


@dataclass
class StagePlan:
    """All stages in order. `pads` holds the zero pixels that each map needs at the ends of its rows.

    `tail` is the index of the first stage that may run in strips. `last_use` is the last stage that reads a map.
    """

    stages: list[StageOps]
    pads: dict[str, int]
    tail: int
    last_use: dict[str, int]

    def free_from(self, at: int) -> dict[str, int]:
        """For each map that stage `at` reads only at the written pixel: the first operation that may write over it.

        The result of that operation, or of a later one, may take the place of the map if no later stage reads it. A
        convolution reads its operand once per block of output channels, so the operation behind it is the first one.
        """
        free: dict[str, int] = {}
        around: set[str] = set()
        for index, op in enumerate(self.stages[at].ops):
            around.update(op.around)
            for name in op.inputs:
                convolved = name in op.operands and op.kind in CONVOLUTIONS
                free[name] = max(free.get(name, 0), index + convolved)
        return {name: index for name, index in free.items() if name not in around}

    def strip_rows(self, graph: Graph, height: int, first: int, last: int) -> list[tuple[int, int]]:
        """Rows [begin, end) of each tail stage that the input rows [first, last) of the result need.

        They are rows of the stage's own magnification, cut at the picture. A strip may have a few rows more than
        needed: a row that is computed twice costs time, and a missing row would be wrong.
        """
        wanted: dict[str, tuple[int, int]] = {}
        types = graph.types
        wanted[graph.output] = (first * graph.scale, last * graph.scale)
        rows = []
        for stage in reversed(self.stages[self.tail :]):
            spans = []
            for name in stage.whole:
                if name in wanted:
                    low, high = wanted[name]
                    ratio = types[name].up // stage.up  # a shuffled map is finer than its stage
                    spans.append((low // ratio, -(-high // ratio)))
            begin = max(0, min((low for low, _ in spans), default=0))
            end = min(int(height * stage.up), max((high for _, high in spans), default=0))
            rows.append((begin, end))
            for op in stage.ops:
                for name in op.inputs:
                    reach = (op.reach or 0) if name in op.around else 0
                    need = (begin // op.zoom - reach, -(-end // op.zoom) + reach)
                    old = wanted.get(name, need)
                    wanted[name] = (min(old[0], need[0]), max(old[1], need[1]))
        return rows[::-1]


def _stage_up(op: TileOp, types: Mapping[str, ValueType]) -> int | Fraction:
    """Magnification at which an operation runs: that of its result, but of its operand where it spreads pixels."""
    name = op.in0 if op.kind == "pixel_shuffle" else op.outputs[0]
    return types[name].up


def _levels(ops: list[TileOp]) -> list[int]:
    """The stage number of each operation: as early as possible, resizes as late as possible."""
    made_at: dict[str, int] = {INPUT: -1}
    shuffled: set[str] = set()
    levels: list[int] = []
    for op in ops:
        level = 0
        for name in op.inputs:
            whole = name in op.around or name in shuffled
            level = max(level, made_at[name] + 1 if whole else made_at[name])
        levels.append(level)
        made_at.update({name: level for name in op.outputs})
        if op.kind == "pixel_shuffle":
            shuffled.update(op.outputs)
    # The input is always there, but its magnified copy need not be. So make the copy where it is read.
    first_read: dict[str, int] = {}
    for level, op in zip(levels, ops, strict=True):
        for name in op.inputs:
            read = level - int(name in op.around)
            first_read[name] = min(read, first_read[name]) if name in first_read else read
    late = [op.kind == "resize" and op.in0 == INPUT for op in ops]
    return [
        max(level, first_read.get(op.outputs[0], level)) if is_late else level
        for level, op, is_late in zip(levels, ops, late, strict=True)
    ]


def plan_stages(graph: Graph, ops: list[TileOp], *, keep: bool = False) -> StagePlan:
    """Cut `ops` into stages. With `keep` every value becomes a map, so that the caller can see all of them."""
    types = graph.types
    levels = _levels(ops)
    keys = sorted({(level, _stage_up(op, types)) for level, op in zip(levels, ops, strict=True)})
    number = {key: index for index, key in enumerate(keys)}
    stages = [StageOps(up=up) for _, up in keys]
    home: dict[str, int] = {INPUT: -1}
    whole: set[str] = {graph.output}
    pads: dict[str, int] = {INPUT: 0}
    last_use: dict[str, int] = {}
    for level, op in zip(levels, ops, strict=True):
        at = number[level, _stage_up(op, types)]
        stages[at].ops.append(op)
        home.update({name: at for name in op.outputs})
        if op.kind == "pixel_shuffle" or keep:
            whole.update(op.outputs)
        for name in op.inputs:
            spatial = name in op.around
            if spatial and op.kind != "resize":
                pads[name] = max(pads.get(name, 0), op.kernel // 2)
            if spatial or home[name] != at:
                whole.add(name)
            last_use[name] = max(at, last_use.get(name, -1))
    for stage in stages:
        stage.whole = [name for op in stage.ops for name in op.outputs if name in whole]
    binary = [at for at, stage in enumerate(stages) if any(op.kind == "binary_conv2d" for op in stage.ops)]
    tail = len(stages) if keep else binary[-1] + 1 if binary else 0
    last_use[graph.output] = len(stages)  # by the caller
    return StagePlan(stages=stages, pads=pads, tail=tail, last_use=last_use)
