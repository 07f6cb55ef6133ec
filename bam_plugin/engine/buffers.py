"""Plan which maps of a program share memory, and where the values of a tile stand.

Plans are names and numbers, and allocate nothing. Their time is proportional to the number of operations, of which a
file may hold thousands.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bam_plugin.engine.tile_stages import StageOps, StagePlan
from bam_plugin.packed.graph import INPUT, Graph


@dataclass(frozen=True)
class BodyBuffers:
    """The maps of the stages in front of the tail: map -> number of its buffer; `first` names a map of each buffer."""

    number: Mapping[str, int]
    first: tuple[str, ...]


def share_buffers(plan: StagePlan, graph: Graph, *, keep: bool = False) -> BodyBuffers:
    """Give each map of the body the buffer of a map that nothing reads any more, or its own buffer.

    A map takes the buffer of another of the same geometry, so that the zeros at the ends of rows stay zeros. Nothing
    reads the other any more, or its own stage reads it only at the written pixel. The output has a buffer of its own;
    with `keep` all maps have one.
    """

    def geometry(name: str) -> tuple[object, ...]:
        value = graph.types[name]
        return value.kind, value.channels, value.up, plan.pads.get(name, 0)

    number: dict[str, int] = {}
    first: list[str] = []
    free: defaultdict[object, deque[int]] = defaultdict(deque)
    dying_at: defaultdict[int, list[str]] = defaultdict(list)
    for at, stage in enumerate(plan.stages[: plan.tail]):
        dying = [] if keep else dying_at[at]
        free_from = plan.free_from(at) if dying else {}
        written = {name: index for index, op in enumerate(stage.ops) for name in op.outputs}
        in_place: defaultdict[object, deque[tuple[int, str]]] = defaultdict(deque)
        for index, name in sorted((free_from[name], name) for name in dying if name in free_from):
            in_place[geometry(name)].append((index, name))
        taken = set()
        for name in stage.whole:
            key = geometry(name)
            if name != graph.output and free[key]:
                number[name] = free[key].popleft()
            elif name != graph.output and in_place[key] and in_place[key][0][0] <= written[name]:
                old = in_place[key].popleft()[1]
                taken.add(old)
                number[name] = number[old]
            else:
                number[name] = len(first)
                first.append(name)
            if name not in (INPUT, graph.output):
                dying_at[plan.last_use.get(name, at)].append(name)
        for name in dying_at[at]:
            if name not in taken and not keep:
                free[geometry(name)].append(number[name])
    return BodyBuffers(number, tuple(first))


def scratch_layout(
    stage: StageOps, stays: Callable[[str], bool], size: Callable[[str], int]
) -> tuple[dict[str, int], int]:
    """Offsets of the values that `stays` says live in the tile alone, `size` bytes each, and the bytes of all together.

    A value takes the place of one of the same size that nothing reads any more, or comes behind all others.
    """
    last = {name: index for index, op in enumerate(stage.ops) for name in op.inputs + op.outputs}
    ends: defaultdict[int, list[str]] = defaultdict(list)
    for name, index in last.items():
        ends[index].append(name)
    offsets: dict[str, int] = {}
    moved: set[str] = set()  # values whose place another one has taken over
    free: defaultdict[int, list[int]] = defaultdict(list)
    top = 0
    for index, op in enumerate(stage.ops):
        for name in op.outputs:
            if not stays(name):
                continue
            bytes_ = size(name)
            old = next((old for old in op.overwritable() if last[old] == index and old in offsets), None)
            if old is not None and old not in moved and name == op.out0 and size(old) >= bytes_:
                offsets[name] = offsets[old]
                moved.add(old)
            elif free[bytes_]:
                offsets[name] = free[bytes_].pop()
            else:
                offsets[name] = top
                top += bytes_
        for name in ends[index]:
            if name in offsets and name not in moved:
                free[size(name)].append(offsets[name])
    return offsets, top
