"""Convolutions on integers: every instruction set equals the reference in every bit, and little is lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.kernels import ISAS, built, check, picture, same_bits
from helpers.packed_files import resign, rewrite
from helpers.packed_models import binary_layer, float_layer, lb_block, random_floats, small_model

from bam_plugin.engine import Engine, program
from bam_plugin.engine.calibrate import cut_at, largest_activations, offered_ranges
from bam_plugin.engine.kernels import compiled_isas
from bam_plugin.engine.timing import engine_rivals
from bam_plugin.packed import EngineError, InvalidPrecisionError, PackedModel
from bam_plugin.packed.format import pack_model, unpack_model
from bam_plugin.packed.integers import at_precision, with_integers
from bam_plugin.packed.precision import (
    FIELD,
    INTEGERS,
    PRECISIONS,
    Offer,
    quantise_weights,
    read_offers,
    reducible_convs,
)

needs_kernels = pytest.mark.skipif(not ISAS, reason="the C kernels were not built (no C compiler at installation)")
KINDS = list(INTEGERS.values())
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def reduced(model: PackedModel, kind, images: list[np.ndarray] | None = None) -> PackedModel:
    """The model on integers; without images every range is 2, so that some values are cut."""
    if images is not None:
        return with_integers(model, Offer(kind, offered_ranges(largest_activations(model, images), kind), {}, {}))
    ranges = {name: (2.0,) * channels for name, channels in reducible_convs(model.graph).items()}
    return with_integers(model, Offer(kind, ranges, {}, {}))


def offering(model: PackedModel, *kinds, **changes) -> PackedModel:
    """The model with offers as `bam quantize` records them, the fields of the last one changed."""
    ranges = {name: [2.0] * channels for name, channels in reducible_convs(model.graph).items()}
    offers = {
        kind.name: {"ranges": ranges, "cost_db": {"Set5": 0.001}, "calibration": {"name": "photos"}} for kind in kinds
    }
    offers[kinds[-1].name] = offers[kinds[-1].name] | changes
    return dataclasses.replace(model, metadata={**model.metadata, FIELD: offers})


def forged(model: PackedModel) -> bytes:
    """The model's file with its facts as they are, and the checksum of its content."""
    data = pack_model(dataclasses.replace(model, metadata={}))
    return resign(rewrite(data, document=lambda document: document.update(info=dict(model.metadata))))


def upsampler(builder, generator, value):
    """Two magnifying stages with something pointwise in one, and a last convolution, as SRResNet has them."""
    value = float_layer(builder, generator, value, "up0", out=64)
    value = builder.add("pixel_shuffle", "shuffle0", value, attrs={"factor": 2})
    value = float_layer(builder, generator, value, "up1", out=64)
    value = builder.add("leaky_relu", "act", value, attrs={"slope": 0.125})
    value = builder.add("pixel_shuffle", "shuffle1", value, attrs={"factor": 2})
    return float_layer(builder, generator, value, "last", out=3)


@needs_kernels
@by_kind
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(
    ("channels", "out"), [(8, 1), (12, 3), (17, 40), (48, 48), (20, 130), (16, 7), (48, 3), (64, 5), (200, 2)]
)
def test_convolution(kind, kernel, channels, out):
    model = built(lambda b, g, x: float_layer(b, g, x, "conv", out=out, kernel=kernel), channels=channels)
    integers = reduced(model, kind)
    assert [node.op for node in integers.graph.nodes] == ["quantize", "int_conv2d"]
    check(integers, picture(4, 67, channels))


@needs_kernels
@by_kind
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 50)])
def test_upsampler(kind, size):
    integers = reduced(built(upsampler, channels=16), kind)
    check(integers, picture(*size, 16))
    # Before the first shuffle and behind the second's activation the rounding comes first: the large maps are integers.
    kinds = {name: value.kind for name, value in integers.graph.types.items()}
    assert kinds["shuffle0"] == kinds["shuffle1"] == kind.name


@needs_kernels
@by_kind
@pytest.mark.parametrize("channels", [8, 12, 48, 72])
def test_whole_networks(kind, channels):
    model = small_model(channels=channels, scale=3)
    image = np.random.default_rng(0).random((17, 23, 3)).astype(np.float32)
    check(reduced(model, kind, [image]), image)


@by_kind
def test_special_values(kind):
    """Infinities and numbers that are none are cut like large numbers, by all alike."""
    model = built(lambda b, g, x: float_layer(b, g, x, "conv", out=4), channels=16)
    image = picture(5, 9, 16)
    image[2, 3, :5] = [np.inf, -np.inf, np.nan, 3e38, -0.0]
    with np.errstate(invalid="ignore", over="ignore"):
        check(reduced(model, kind), image)


@needs_kernels
@by_kind
def test_strips_do_not_show(kind, monkeypatch):
    def make(builder, generator, value):
        return upsampler(builder, generator, lb_block(builder, generator, value, "block"))

    model = reduced(built(make, channels=16), kind)
    image = picture(37, 11, 16)
    whole = Engine(model, isa=ISAS[0]).run(image)
    monkeypatch.setattr(program, "STRIP_BYTES", 1)
    strips = program.Program(model=model, weights=program.Weights(isa=compiled_isas()[ISAS[0]]), height=37, width=11)
    assert len(strips._strips) == 5
    assert same_bits(strips.run(image, 2), whole)
    assert same_bits(strips.run(image, 1), whole)


@by_kind
def test_a_part_equals_its_place_in_the_whole(kind):
    """Scales are fixed, so a tile with its context gives the pixels of the untiled picture."""
    model = built(upsampler, channels=16)
    engine = Engine(reduced(model, kind), threads=1)
    image, radius = picture(30, 33, 16), model.receptive_radius
    whole, part = engine.run(image), engine.run(np.ascontiguousarray(image[7:25, 5:]))
    assert same_bits(
        part[4 * radius : -4 * radius, 4 * radius :].copy(),
        whole[28:100, 20:][4 * radius : -4 * radius, 4 * radius :].copy(),
    )


@by_kind
def test_numpy_equals_the_reference(kind):
    model = reduced(built(upsampler, channels=16), kind)
    image = picture(6, 9, 16)
    assert same_bits(Engine(model, isa="numpy").run(image), Engine(model, isa="reference").run(image))


@pytest.mark.parametrize(("kind", "least"), zip(KINDS, (30.0, 55.0), strict=True))
def test_little_is_lost(kind, least):
    """Signal to noise of an upsampler's result, in dB: 8 bits a factor, and about 12."""
    model, image = built(upsampler, channels=32), picture(20, 20, 32)
    exact, rounded = (Engine(m).run(image).astype(np.float64) for m in (model, reduced(model, kind, [image])))
    noise = ((exact - rounded) ** 2).mean()
    assert 10 * np.log10(exact.var() / noise) > least
    assert noise > 0


@by_kind
@pytest.mark.parametrize("size", [1, 3, 31])
def test_sums_never_exceed_32_bits(kind, size):
    """Filters whose weights are all equal are the worst case."""
    weight = np.ones((2, 350, size, size), dtype=np.float32)
    weight[1] *= random_floats(np.random.default_rng(0), 1, 350, size, size)[0]
    integers, scale, _ = quantise_weights(weight, (1.0,) * 350, kind)
    assert np.abs(integers.astype(np.int64)).sum(axis=(1, 2, 3)).max() * kind.activation < 2**31
    assert np.abs(integers).max() <= kind.weight and integers.any(axis=(1, 2, 3)).all()
    step = (1.0 / kind.activation) / scale
    assert np.allclose(integers, weight * step[:, None, None, None], atol=0.51)


@by_kind
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_weights_that_fit_no_scale_are_refused(kind, value):
    weight = np.ones((2, 8, 3, 3), dtype=np.float32)
    weight[1, 2, 0, 0] = value
    with pytest.raises(EngineError, match=f"too large for {kind.name}, or no numbers"):
        quantise_weights(weight, (1e20,) * 8, kind)


def test_which_convolutions_run_on_integers():
    """Those behind the last threshold; not one whose result a threshold sees, nor one that sees the picture."""

    def make(builder, generator, value):
        value = float_layer(builder, generator, value, "head", out=16)
        middle = float_layer(builder, generator, value, "middle", out=16)
        signs = binary_layer(builder, generator, middle, "body", out=16, kernel=3)
        end = float_layer(builder, generator, builder.add("add", "sum", signs, middle), "end", out=6)
        return float_layer(builder, generator, end, "narrow", out=3)

    model = built(make, channels=3)
    assert reducible_convs(model.graph) == {"end": 16}
    assert cut_at(model, "middle").graph.output == "middle"
    assert [node.name for node in cut_at(model, "middle").graph.nodes] == ["head", "middle"]


def test_ranges_are_those_of_the_operands():
    model = built(lambda b, g, x: float_layer(b, g, b.add("relu", "act", x), "conv", out=4), channels=8)
    images = [np.full((2, 3, 8), level, np.float32) * np.arange(8, dtype=np.float32) for level in (1, 3, 2)]
    largest = largest_activations(model, images)
    assert largest["conv"].tolist() == [3.0 * channel for channel in range(8)]
    for kind in KINDS:
        ranges = offered_ranges(largest, kind)["conv"]
        assert ranges[1:] == pytest.approx(kind.room * largest["conv"][1:], rel=1e-3)
        assert 0 < ranges[0] < ranges[1]
    with pytest.raises(EngineError, match="not finite"):
        offered_ranges({"conv": np.array([1, np.inf])}, kind)
    with pytest.raises(EngineError, match="at least one picture"):
        largest_activations(model, [])
    with pytest.raises(EngineError, match="nothing to reduce"):
        largest_activations(built(lambda b, g, x: b.add("relu", "act", x), channels=8), images)


def test_offers_survive_the_file_and_are_asked_for_by_name():
    model = offering(small_model(), *KINDS)
    read = unpack_model(pack_model(model))
    assert read_offers(read.graph, read.metadata) == read_offers(model.graph, model.metadata)
    image = picture(5, 6, 3)
    results = [Engine(read, precision=name).run(image) for name in PRECISIONS]
    assert same_bits(results[0], Engine(small_model()).run(image))
    assert not same_bits(results[0], results[1]) and not same_bits(results[1], results[2])
    assert at_precision(read, "fp32") is read
    assert Engine(read, precision="int8").precision == "int8"
    with pytest.raises(EngineError, match=r"int4.*'fp32', 'int8', 'int16'"):
        Engine(read, precision="int4")
    with pytest.raises(EngineError, match=r"does not offer int8, only \['fp32', 'int16'\].*bam quantize"):
        Engine(offering(small_model(), INTEGERS["int16"]), precision="int8")


@by_kind
@pytest.mark.parametrize("largest", [3e-39, 2e38, 0.0])
def test_ranges_of_any_size_can_be_read_again(kind, largest):
    found = np.linspace(0, largest, 12)
    model = offering(small_model(), kind, ranges=offered_ranges({"tail": found}, kind))
    assert unpack_model(pack_model(model)).metadata[FIELD][kind.name]["ranges"]["tail"][-1] > 0


def test_bench_measures_offered_precisions():
    image = picture(5, 6, 3)
    rivals = engine_rivals(offering(small_model(), *KINDS), image, isas=["numpy"], threads=1)
    assert list(rivals) == ["numpy whole", "numpy int8 whole", "numpy int16 whole"]
    assert not same_bits(rivals["numpy whole"](), rivals["numpy int8 whole"]())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranges": {}}, "ranges of int8 must be for convolutions among"),
        ({"ranges": {"head": [1.0] * 3}}, "convolutions among"),
        ({"ranges": {"tail": [2.0] * 11}}, "'tail' must be 12 numbers"),
        ({"ranges": {"tail": [2.0] * 11 + [0.0]}}, "12 numbers between"),
        ({"ranges": {"tail": [2.0] * 11 + [-1]}}, "12 numbers between"),
        ({"ranges": {"tail": [2.0] * 11 + [10**400]}}, "12 numbers between"),
        ({"ranges": {"tail": [2.0] * 11 + [True]}}, "12 numbers between"),
        ({"ranges": {"tail": 2.0}}, "12 numbers between"),
        ({"cost_db": {}}, "cost_db of int8"),
        ({"cost_db": {"Set5": 0.02}}, "loss below 0.02 dB"),
        ({"cost_db": {"Set5": "none"}}, "loss below 0.02 dB"),
        ({"calibration": "photos"}, "calibration of int8"),
        ({"more": 1}, "exactly the fields"),
    ],
)
def test_damaged_offers_are_refused(changes, words):
    """By the reader in a forged file, and by the writer, whose file nobody could read."""
    model = offering(small_model(), INTEGERS["int8"], **changes)
    with pytest.raises(InvalidPrecisionError, match=words):
        unpack_model(forged(model))
    with pytest.raises(InvalidPrecisionError, match=words):
        pack_model(model)


@pytest.mark.parametrize("section", [[], "int8", {"int4": {}}, {"fp32": {}}, None])
def test_damaged_sections_are_refused(section):
    model = dataclasses.replace(small_model(), metadata={FIELD: section})
    with pytest.raises(InvalidPrecisionError):
        unpack_model(forged(model))
    with pytest.raises(InvalidPrecisionError):
        pack_model(model)
