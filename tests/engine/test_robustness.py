"""The engine on graphs that a forger or an accident makes: limits, time in proportion, memory, threads and forks."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers.graph_fuzzing import differences, same
from helpers.packed_models import binary_layer, float_layer, random_floats, small_model

from bam_plugin.engine import Engine, program
from bam_plugin.engine.kernels import compiled_isas
from bam_plugin.engine.parameters import Weights
from bam_plugin.engine.program import Program
from bam_plugin.packed import EngineError, InvalidGraphError, PackedModel
from bam_plugin.packed.format import pack_model, unpack_model
from bam_plugin.packed.graph_builder import GraphBuilder

ISAS = list(compiled_isas())
needs_kernels = pytest.mark.skipif(not ISAS, reason="the C kernels were not built (no C compiler at installation)")


@needs_kernels
def test_random_graphs_equal_the_reference():
    """Seeds of benchmarks/fuzz_graphs.py, which runs as many as you like."""
    found = [difference for seed in range(150) for difference in differences(seed)]
    assert not found


def wide_star(values: int) -> PackedModel:
    """So many values of 65,536 channels that are alive at once."""
    builder = GraphBuilder(num_in_ch=3)
    wide = builder.add("conv2d", "wide", builder.input, tensors={"weight": np.ones((65536, 3, 1, 1), np.float32)})
    parts = [builder.add("scale", f"part{i}", wide, attrs={"factor": float(i % 7)}) for i in range(values)]
    total = parts[0]
    for part in parts[1:]:
        total = builder.add("add", "sum", total, part)
    mean = builder.add("channel_mean", "mean", total, attrs={"statistic": "mean"})
    return PackedModel(graph=builder.finish(builder.add("add", "out", mean, builder.input)), tensors=builder.tensors)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_a_tile_that_holds_too_much_is_refused(isa):
    """More than 2^31 bytes of scratch memory: 32-bit offsets once wrote in front of it."""
    with pytest.raises(EngineError, match="bytes for a tile"):
        Engine(wide_star(1100), isa=isa, threads=1).run(np.ones((1, 1, 3), np.float32))


def test_too_many_numbers_per_pixel_are_refused():
    builder = GraphBuilder(num_in_ch=3)
    wide = builder.add("conv2d", "wide", builder.input, tensors={"weight": np.ones((65536, 3, 1, 1), np.float32)})
    with pytest.raises(InvalidGraphError, match="too many numbers per pixel"):
        builder.add("resize", "large", wide, attrs={"factor": 2, "mode": "nearest"})


@needs_kernels
def test_a_body_that_holds_too_much_for_a_pixel_is_refused():
    """Maps that are read around a pixel must be whole."""
    builder, generator = GraphBuilder(num_in_ch=1), np.random.default_rng(0)
    wide = builder.add("conv2d", "wide", builder.input, tensors={"weight": np.ones((65536, 1, 1, 1), np.float32)})
    parts = []
    for index in range(70):
        part = builder.add("scale", "part", wide, attrs={"factor": float(index)})
        weight = np.ones((1, 65536, 3, 3), np.float32) if not parts else parts[0][1]
        parts.append((builder.add("conv2d", "conv", part, tensors={"weight": weight}), weight))
    total = parts[0][0]
    for part, _ in parts[1:]:
        total = builder.add("add", "sum", total, part)
    output = binary_layer(builder, generator, total, "binary", out=1, kernel=1)
    model = PackedModel(graph=builder.finish(output), tensors=builder.tensors)
    with pytest.raises(EngineError, match="bytes for a pixel"):
        Engine(model, isa=ISAS[0], threads=1).run(np.ones((1, 1, 1), np.float32))


def star(values: int) -> PackedModel:
    builder = GraphBuilder(num_in_ch=1)
    parts = [
        builder.add("resize", f"r{i}", builder.input, attrs={"factor": 1, "mode": "nearest"}) for i in range(values)
    ]
    total = parts[0]
    for index, part in enumerate(parts[1:]):
        total = builder.add("add", f"s{index}", total, part)
    signs = {"threshold": np.zeros(1, np.float32), "flip": np.zeros(1, np.uint8)}
    total = builder.add("threshold", "sign", total, tensors=signs)
    tensors = {"weight": np.zeros((1, 1), np.uint8), "scale": np.ones(1, np.float32)}
    output = builder.add("binary_conv2d", "conv", total, attrs={"kernel": 1, "alphabet": "-1,+1"}, tensors=tensors)
    return PackedModel(graph=builder.finish(output), tensors=builder.tensors)


@needs_kernels
def test_planning_takes_time_in_proportion_to_the_nodes():
    def seconds(values: int) -> float:
        model = star(values)
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            Program(model=model, weights=Weights(isa=compiled_isas()[ISAS[0]]), height=1, width=1)
            Engine(model, isa=ISAS[0], threads=1).tile_memory()
            best = min(best, time.process_time() - start)
        return best

    assert seconds(4000) < 10 * seconds(1000)  # in quadratic time 16 times as long


def read_later() -> tuple[PackedModel, str]:
    """A graph whose output is read by later nodes that nobody needs."""
    builder, generator = GraphBuilder(num_in_ch=3), np.random.default_rng(0)
    output = value = float_layer(builder, generator, builder.input, "out", out=3)
    for index in range(4):
        value = float_layer(builder, generator, value, f"later{index}", out=3)
    value = binary_layer(builder, generator, value, "binary", out=3, kernel=1)
    return PackedModel(graph=builder.finish(value), tensors=builder.tensors), output


def test_nodes_that_nobody_needs_are_refused():
    model, output = read_later()
    forged = replace(model, graph=replace(model.graph, output=output))
    with pytest.raises(InvalidGraphError, match="6 nodes make values that the output 'out' does not need"):
        unpack_model(pack_model(forged))


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_the_output_keeps_its_buffer(isa):
    model, output = read_later()
    model = replace(model, graph=replace(model.graph, output=output))
    image = random_floats(np.random.default_rng(1), 9, 7, 3)
    expected = Engine(model, isa="reference").run(image)
    assert same(Engine(model, isa=isa, threads=1).run(image), expected)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_subnormal_scales_of_zeros_and_ones(isa):
    """Half of such a scale is no float32."""
    builder = GraphBuilder(num_in_ch=9)
    value = binary_layer(builder, np.random.default_rng(0), builder.input, "conv", out=280, kernel=3, alphabet="0,1")
    model = PackedModel(graph=builder.finish(value), tensors=builder.tensors)
    scale = (np.arange(280) + 1) * np.float32(1e-45)
    model.tensors["conv.scale"][:] = scale
    image = random_floats(np.random.default_rng(1), 5, 6, 9)
    assert same(Engine(model, isa=isa).run(image), Engine(model, isa="reference").run(image))


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_one_array_in_two_layers(isa):
    """The same bytes are filters of 3x3 x 8 and of 1x1 x 72 channels; a shared filter has two biases."""
    generator, builder = np.random.default_rng(0), GraphBuilder(num_in_ch=8)
    packed, scale = generator.integers(0, 256, (8, 9), dtype=np.uint8), np.ones(8, np.float32)
    weight = random_floats(generator, 72, 8, 1, 1)
    values = []
    for bias in (0.5, -0.5):
        tensors = {"weight": weight, "bias": np.full(72, bias, np.float32)}
        wide = builder.add("conv2d", "wide", builder.input, tensors=tensors)
        signs = {"threshold": np.zeros(72, np.float32), "flip": np.zeros(72, np.uint8)}
        signs = builder.add("threshold", "sign", wide, tensors=signs)
        attrs, tensors = {"kernel": 1, "alphabet": "-1,+1"}, {"weight": packed, "scale": scale}
        values.append(builder.add("binary_conv2d", "point", signs, attrs=attrs, tensors=tensors))
    signs = {"threshold": np.full(8, 0.5, np.float32), "flip": np.zeros(8, np.uint8)}
    signs = builder.add("threshold", "sign", builder.input, tensors=signs)
    attrs, tensors = {"kernel": 3, "alphabet": "-1,+1"}, {"weight": packed, "scale": scale}
    total = builder.add("binary_conv2d", "square", signs, attrs=attrs, tensors=tensors)
    for value in values:
        total = builder.add("add", "sum", total, value)
    model = PackedModel(graph=builder.finish(total), tensors=builder.tensors)
    image = generator.random((5, 6, 8), dtype=np.float32)
    assert same(Engine(model, isa=isa).run(image), Engine(model, isa="reference").run(image))


@needs_kernels
def test_the_memory_of_a_tile_holds_maps_behind_an_upsampler():
    builder, generator = GraphBuilder(num_in_ch=3), np.random.default_rng(0)
    value = float_layer(builder, generator, builder.input, "head", out=64)
    value = builder.add("pixel_shuffle", "first", value, attrs={"factor": 2})
    value = binary_layer(
        builder, generator, float_layer(builder, generator, value, "wide", out=48), "b", out=48, kernel=3
    )
    value = builder.add("pixel_shuffle", "second", value, attrs={"factor": 2})
    model = PackedModel(
        graph=builder.finish(float_layer(builder, generator, value, "tail", out=3)), tensors=builder.tensors
    )
    height, width = 300, 400
    made = Program(model=model, weights=Weights(isa=compiled_isas()[ISAS[0]]), height=height, width=width)
    need = Engine(model, isa=ISAS[0]).tile_memory()
    total = need.per_pixel * height * width + need.per_column * width + need.fixed - program.KEPT_BYTES
    assert made.bytes < total < 2 * made.bytes


@needs_kernels
def test_programs_of_several_sizes_are_kept_in_bounds():
    engine = Engine(small_model(channels=8), isa=ISAS[0])
    for size in (5, 6, 5, 7):
        engine.run(np.zeros((size, 4, 3), np.float32))
    assert list(engine._runner._programs) == [(6, 4), (5, 4), (7, 4)]
    engine.run(np.zeros((500, 1000, 3), np.float32))
    engine.run(np.zeros((5, 4, 3), np.float32))
    assert list(engine._runner._programs) == [(5, 4)]


@needs_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_can_run_while_its_parent_does():
    engine, image = Engine(small_model(channels=8), isa=ISAS[0], threads=2), np.zeros((5, 4, 3), np.float32)
    expected = engine.run(image)
    with engine._runner._lock:  # a thread of the parent is at work
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a process that waits for ever
            os._exit(0 if same(engine.run(image), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
