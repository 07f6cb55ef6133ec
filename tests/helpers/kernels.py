"""Compiled kernels against the reference, in every bit."""

from __future__ import annotations

import numpy as np

from bam_plugin.engine import Engine
from bam_plugin.engine.kernels import compiled_isas
from bam_plugin.packed import PackedModel
from bam_plugin.packed.graph_builder import GraphBuilder
from helpers.packed_models import random_floats

ISAS = list(compiled_isas())


def built(make, *, channels: int, seed: int = 0) -> PackedModel:
    """A model of `channels` input channels whose output `make(builder, generator, input)` returns."""
    builder, generator = GraphBuilder(num_in_ch=channels), np.random.default_rng(seed)
    graph = builder.finish(make(builder, generator, builder.input))
    return PackedModel(graph=graph, tensors=builder.tensors)


def picture(height: int, width: int, channels: int, seed: int = 1) -> np.ndarray:
    return random_floats(np.random.default_rng(seed), height, width, channels)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def check(model: PackedModel, image: np.ndarray, *, threads: tuple[int, ...] = (1, 3)) -> None:
    """Every value of every instruction set, and the fused result at several thread counts."""
    expected: dict[str, np.ndarray] = {}
    result = Engine(model, isa="reference").run(
        image, observe=lambda name, value: expected.update({name: value.copy()})
    )
    for isa in ISAS:
        found: dict[str, np.ndarray] = {}
        engine = Engine(model, isa=isa, threads=1)
        kept = engine.run(image, observe=lambda name, value, found=found: found.update({name: value}))
        assert same_bits(kept, result), isa
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert same_bits(found[name], value), (isa, name)
        for count in threads:
            assert same_bits(Engine(model, isa=isa, threads=count).run(image), result), (isa, count)
