"""The parts of a packed network that are measured apart: `whole`, `body` and `tail`. They are cut where the engine
cuts.

The body begins with the head and ends with the stage of the last binary convolution. The tail is the rest. Each part is
a list of nodes with the values that go in and come out, so any runtime can build it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bam_plugin.engine.calibrate import cut_at
from bam_plugin.engine.engine import Engine
from bam_plugin.engine.fusion import tile_ops
from bam_plugin.engine.tile_stages import plan_stages
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import INPUT, Node

PARTS = ("whole", "body", "tail")


@dataclass(frozen=True)
class Segment:
    """Nodes in order of execution, the float values that they read, and the float values that others read."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """One network at one image size and number of threads. A rival builds its parts from it.

    `values` holds the engine's maps (H, W, C) of every segment's inputs and outputs.
    """

    model: PackedModel
    segments: Mapping[str, Segment]
    values: Mapping[str, np.ndarray]
    threads: int


def _segment(nodes: Sequence[Node], wanted: set[str]) -> Segment:
    made = {node.name for node in nodes}
    read = dict.fromkeys(name for node in nodes for name in node.inputs if name not in made)
    return Segment(tuple(nodes), tuple(read), tuple(node.name for node in nodes if node.name in wanted))


def cut(model: PackedModel) -> dict[str, Segment]:
    """The segments by part.

    A network without binary convolutions has no body, and one that ends with them has no tail.
    """
    graph = model.graph
    plan = plan_stages(graph, tile_ops(graph, model.tensors, fuse=False))
    early = {name for stage in plan.stages[: plan.tail] for op in stage.ops for name in op.outputs}
    body = [node for node in graph.nodes if node.name in early]
    tail = [node for node in graph.nodes if node.name not in early]
    segments = {"whole": _segment(graph.nodes, {graph.output})}
    if body and tail:
        behind = _segment(tail, {graph.output})
        segments |= {"body": _segment(body, set(behind.inputs)), "tail": behind}
    return segments


def _value(model: PackedModel, name: str, image: np.ndarray, isa: str | None, threads: int) -> np.ndarray:
    """The engine's map (H, W, C) of one value. A network that ends there computes it: all maps would take gigabytes."""
    if name == INPUT:
        return image
    return Engine(cut_at(model, name), isa=isa, threads=threads).run(image)


def make_workload(model: PackedModel, image: np.ndarray, *, threads: int, isa: str | None = None) -> Workload:
    """Cut the network, and let the engine compute the values at the cuts for `image` (H, W, C)."""
    segments = cut(model)
    wanted = {name for segment in segments.values() for name in (*segment.inputs, *segment.outputs)}
    if "tail" in segments:
        # A rival in 8 bits needs the ranges of the operands of the tail's convolutions.
        wanted |= {node.inputs[0] for node in segments["tail"].nodes if node.op == "conv2d"}
    values = {name: _value(model, name, image, isa, threads) for name in sorted(wanted)}
    return Workload(model=model, segments=segments, values=values, threads=threads)
