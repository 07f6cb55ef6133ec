"""Which range the input of each convolution has on pictures: what a precision of integers needs to know.

A range is the largest magnitude of a channel on the pictures, with a little room above it, since what lies beyond is cut
when the network runs. Quiet channels get a share of the loudest one's range. On a trained BSRN x4 a quarter of room cost
0.002 dB more than none, and half the range, which cuts the strongest edges, 0.02 dB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from bam_plugin.packed.engine import Engine
from bam_plugin.packed.errors import EngineError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.precision import reducible_convs

ROOM = 1.125
LEAST_SHARE = 1 / 256  # of the loudest channel
DIGITS = 4  # of a range in the file


def cut_at(model: PackedModel, value: str) -> PackedModel:
    """The part of a network that makes `value`, as a network of its own."""
    needed, nodes = {value}, []
    for node in reversed(model.graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
            nodes.append(node)
    graph = replace(model.graph, nodes=tuple(reversed(nodes)), output=value)
    used = {name for node in nodes for name in node.tensors.values()}
    return PackedModel(graph=graph, tensors={name: model.tensors[name] for name in used})


def activation_ranges(
    model: PackedModel, images: Iterable[np.ndarray], *, isa: str | None = None, threads: int | None = None
) -> dict[str, tuple[float, ...]]:
    """Ranges of the inputs of all convolutions that may run on integers, on `images`: float32 (H, W, C) in [0, 1].

    Raises EngineError where there is no such convolution, no image, or one that is not finite inside the network.
    """
    inputs = {node.name: node.inputs[0] for node in model.graph.nodes}
    values = {conv: inputs[conv] for conv in reducible_convs(model.graph)}
    if not values:
        raise EngineError("the network has no float convolution behind its last sign: there is nothing to reduce")
    engines = {value: Engine(cut_at(model, value), isa=isa, threads=threads) for value in set(values.values())}
    largest: dict[str, np.ndarray] = {}
    for image in images:
        for value, engine in engines.items():
            found = np.abs(engine.run(image)).max(axis=(0, 1)).astype(np.float64)
            largest[value] = np.maximum(largest[value], found) if value in largest else found
    if not largest:
        raise EngineError("calibration needs at least one picture")
    return {conv: _ranges(largest[value], conv) for conv, value in values.items()}


def _ranges(largest: np.ndarray, conv: str) -> tuple[float, ...]:
    top = float(largest.max())
    if not np.isfinite(top):
        raise EngineError(f"the input of {conv!r} is not finite on the pictures for calibration")
    ranges = ROOM * np.maximum(largest, LEAST_SHARE * top) if top > 0 else np.ones(len(largest))
    return tuple(float(f"{value:.{DIGITS}g}") for value in ranges)
