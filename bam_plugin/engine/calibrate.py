"""Measure the range of the input of each convolution on pictures, for a precision of integers.

A range is the largest magnitude of a channel on the pictures, with the precision's room above it. Values beyond it are
cut when the network runs. Quiet channels get a share of the loudest channel's range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from bam_plugin.engine.engine import Engine
from bam_plugin.packed.errors import EngineError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph_builder import needed_nodes
from bam_plugin.packed.precision import LARGEST_RANGE, SMALLEST_RANGE, Integers, reducible_convs

LEAST_SHARE = 1 / 256  # of the loudest channel
DIGITS = 4  # of a range in the file


def cut_at(model: PackedModel, value: str) -> PackedModel:
    """The part of a network that makes `value`, as a network of its own."""
    nodes = needed_nodes(model.graph.nodes, value)
    graph = replace(model.graph, nodes=nodes, output=value)
    used = {name for node in nodes for name in node.tensors.values()}
    return PackedModel(graph=graph, tensors={name: model.tensors[name] for name in used})


def largest_activations(
    model: PackedModel, images: Iterable[np.ndarray], *, isa: str | None = None, threads: int | None = None
) -> dict[str, np.ndarray]:
    """Largest magnitude of each input channel of all convolutions that may run on integers.

    `images`: float32 (H, W, C) in [0, 1]. Raises EngineError if there is no such convolution or no image.
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
    return {conv: largest[value] for conv, value in values.items()}


def offered_ranges(largest: Mapping[str, np.ndarray], kind: Integers) -> dict[str, tuple[float, ...]]:
    """The ranges of a precision from the results of `largest_activations`, with few digits."""
    return {conv: _ranges(found, conv, kind.room) for conv, found in largest.items()}


def _ranges(largest: np.ndarray, conv: str, room: float) -> tuple[float, ...]:
    top = float(largest.max())
    if not np.isfinite(top):
        raise EngineError(f"the input of {conv!r} is not finite on the pictures for calibration")
    ranges = room * np.maximum(largest, LEAST_SHARE * top) if top > 0 else np.ones(len(largest))
    bounded = ranges.clip(SMALLEST_RANGE, LARGEST_RANGE)
    return tuple(float(f"{value:.{DIGITS}g}") for value in bounded)
