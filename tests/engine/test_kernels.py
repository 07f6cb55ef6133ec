"""The compiled kernels against the reference: equal in every bit, for every instruction set that this machine runs."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from helpers.kernels import ISAS, built, check, picture, same_bits
from helpers.packed_models import (
    binary_layer,
    float_layer,
    lb_block,
    random_floats,
    residual_block,
    small_model,
    spatial_beta,
)

from bam_plugin.engine import Engine, program
from bam_plugin.engine.fusion import tile_ops
from bam_plugin.engine.kernels import carry_save, compiled_isas
from bam_plugin.engine.tile_stages import plan_stages

pytestmark = pytest.mark.skipif(not ISAS, reason="the C kernels were not built (no C compiler at installation)")


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 17, 48, 63, 64, 65, 128, 200, 512])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (6, 50)])
def test_binary_convolution(kernel, channels, size):
    if channels == 512 and size == (6, 50):
        size = (2, 50)
    out = {1: 3, 7: 70, 512: 20}.get(channels, channels)
    model = built(lambda b, g, x: binary_layer(b, g, x, "conv", out=out, kernel=kernel), channels=channels)
    check(model, picture(*size, channels))


# On both sides of each number of words that a gapless patch takes: 1, 3, 5, ... 31, and none at all.
PATCHES = {
    3: [6, 7, 8, 20, 21, 22, 34, 35, 36, 47, 49, 50, 57, 78, 79, 113, 149, 191, 220, 221],
    5: [2, 3, 12, 13, 33, 38, 39, 79, 80],
    7: [1, 9, 40, 41],
}


@pytest.mark.parametrize(("kernel", "channels"), [(kernel, c) for kernel, some in PATCHES.items() for c in some])
@pytest.mark.parametrize("alphabet", ["-1,+1", "0,1"])
def test_patches_of_every_length(kernel, channels, alphabet):
    """Pictures wider than a tile and smaller than the kernel, so that every border class is met."""
    model = built(
        lambda b, g, x: binary_layer(b, g, x, "conv", out=19, kernel=kernel, alphabet=alphabet), channels=channels
    )
    for size in ((3, 51), (kernel, 2)):
        check(model, picture(*size, channels), threads=(2,))


@pytest.mark.parametrize("words", [1, 3, 9, 31])
def test_carry_save_keeps_the_count(words):
    """popcount of the last sum + 2 popcount of the carries = differing bits, by the formula of csrc/tile_patch.h."""
    generator = np.random.default_rng(words)
    pixel, filters = generator.integers(0, 1 << 32, (2, 50, words, 2), dtype=np.uint32)
    x, w = carry_save(pixel), carry_save(filters)
    steps = (x ^ w).reshape(50, -1)
    x, w = (part[:, :-2].reshape(50, -1, 3) for part in (x, w))
    carries = x[..., 0] ^ w[..., 0] ^ ((x[..., 1] ^ w[..., 1]) & (x[..., 2] ^ w[..., 2]))
    counted = np.bitwise_count(steps[:, -2:]).sum(axis=1) + 2 * np.bitwise_count(carries).sum(axis=1, dtype=int)
    assert np.array_equal(counted, np.bitwise_count(pixel ^ filters).sum(axis=(1, 2)))


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
@pytest.mark.parametrize(
    ("channels", "out"),
    [(1, 1), (3, 5), (5, 8), (12, 3), (17, 40), (48, 48), (20, 130), (16, 1), (48, 3), (64, 4), (32, 2)],
)
def test_float_convolution(kernel, channels, out):
    if kernel * kernel * channels > 2000:
        channels = 16
    model = built(lambda b, g, x: float_layer(b, g, x, "conv", out=out, kernel=kernel), channels=channels)
    check(model, picture(4, 67, channels))


def without_bias(builder, generator, value):
    weight = random_floats(generator, 6, builder.types[value].channels, 3, 3)
    return builder.add("conv2d", "conv", value, tensors={"weight": weight})


def per_channel(builder, generator, value, *roles):
    return {role: random_floats(generator, builder.types[value].channels) for role in roles}


def small(builder, generator, value):
    return float_layer(builder, generator, value, "small", out=5)


OPS = {
    "conv without bias": without_bias,
    "relu": lambda b, g, x: b.add("relu", "op", x),
    "leaky_relu": lambda b, g, x: b.add("leaky_relu", "op", x, attrs={"slope": 0.125}),
    "prelu": lambda b, g, x: b.add("prelu", "op", x, tensors=per_channel(b, g, x, "slope")),
    "affine": lambda b, g, x: b.add("affine", "op", x, tensors=per_channel(b, g, x, "scale", "shift")),
    "scale": lambda b, g, x: b.add("scale", "op", x, attrs={"factor": float(np.float32(0.1))}),
    "clamp": lambda b, g, x: b.add("clamp", "op", x, attrs={"low": -0.5, "high": 0.25}),
    "mean above a bound": lambda b, g, x: b.add(
        "channel_mean",
        "op",
        b.add("clamp", "above", x, attrs={"low": 0.5, "high": 2.0}),
        attrs={"statistic": "mean"},
    ),
    "mean below a bound": lambda b, g, x: b.add(
        "channel_mean",
        "op",
        b.add("clamp", "below", x, attrs={"low": -2.0, "high": -0.5}),
        attrs={"statistic": "mean_abs"},
    ),
    "add": lambda b, g, x: b.add("add", "op", x, b.add("relu", "other", x)),
    "mul": lambda b, g, x: b.add("mul", "op", x, b.add("relu", "other", x)),
    "add one channel": lambda b, g, x: b.add(
        "add", "op", b.add("channel_mean", "m", x, attrs={"statistic": "mean"}), x
    ),
    "mul one channel": lambda b, g, x: b.add(
        "mul", "op", x, b.add("channel_mean", "m", x, attrs={"statistic": "mean"})
    ),
    "mean_abs": lambda b, g, x: b.add("channel_mean", "op", x, attrs={"statistic": "mean_abs"}),
    "spatial beta": lambda b, g, x: spatial_beta(b, x, "beta", factor=0.3, offset=0.5),
    "nearest": lambda b, g, x: b.add("resize", "op", x, attrs={"factor": 2, "mode": "nearest"}),
    "bilinear": lambda b, g, x: b.add("resize", "op", x, attrs={"factor": 3, "mode": "bilinear"}),
    "bicubic": lambda b, g, x: b.add("resize", "op", x, attrs={"factor": 4, "mode": "bicubic"}),
    "matlab's bicubic": lambda b, g, x: b.add(
        "resize", "op", x, attrs={"factor": 3, "mode": "bicubic", "coefficient": -0.5}
    ),
    "cat": lambda b, g, x: b.add("cat", "op", x, b.add("relu", "other", x)),
    "cat and convolution": lambda b, g, x: float_layer(b, g, b.add("cat", "both", x, small(b, g, x)), "conv", out=20),
    "cat and colours": lambda b, g, x: float_layer(b, g, b.add("cat", "both", small(b, g, x), x), "conv", out=3),
    "cat and one pixel": lambda b, g, x: float_layer(b, g, b.add("cat", "both", x, x), "conv", out=5, kernel=1),
    "depthwise": lambda b, g, x: float_layer(b, g, x, "conv", out=b.types[x].channels, groups=b.types[x].channels),
    "depthwise 5x5": lambda b, g, x: float_layer(
        b, g, x, "conv", out=b.types[x].channels, groups=b.types[x].channels, kernel=5
    ),
    "one channel each to two": lambda b, g, x: float_layer(
        b, g, x, "conv", out=2 * b.types[x].channels, groups=b.types[x].channels
    ),
    "groups": lambda b, g, x: float_layer(b, g, b.add("cat", "twice", x, x), "conv", out=42, groups=2),
    "groups of one pixel": lambda b, g, x: float_layer(
        b, g, b.add("cat", "twice", x, x), "conv", out=6, groups=2, kernel=1
    ),
    "zeros and ones": lambda b, g, x: binary_layer(b, g, x, "conv", out=20, kernel=3, alphabet="0,1"),
    "lb block": lambda b, g, x: lb_block(b, g, x, "block"),
    "lb block 5x5": lambda b, g, x: lb_block(b, g, lb_block(b, g, x, "first", kernel=5), "second"),
    "residual block": lambda b, g, x: residual_block(b, g, residual_block(b, g, x, "first"), "second"),
}


@pytest.mark.parametrize("channels", [1, 3, 12, 16, 48, 50, 100])
@pytest.mark.parametrize("name", OPS)
def test_operations(name, channels):
    model = built(OPS[name], channels=channels)
    image = picture(3, 53, channels)
    image[0, 0] = 0.0
    image[1, :3] = -0.0
    check(model, image)


@pytest.mark.parametrize(("kernel", "channels", "groups"), [(3, 3, 1), (5, 16, 1), (1, 20, 1), (3, 20, 20), (3, 12, 3)])
def test_strides(kernel, channels, groups):
    """A coarse map and its way back: pixel shuffle, interpolation, binary layers at half the size."""

    def make(builder, generator, value):
        skip = float_layer(builder, generator, value, "head", out=channels)
        value = float_layer(builder, generator, skip, "down", out=channels, kernel=kernel, stride=2, groups=groups)
        value = binary_layer(builder, generator, value, "binary", out=16, kernel=3)
        deep = float_layer(builder, generator, value, "deeper", out=36, stride=3)
        value = builder.add(
            "add",
            "sum",
            value,
            builder.add(
                "resize",
                "up",
                float_layer(builder, generator, deep, "back", out=16, kernel=1),
                attrs={"factor": 3, "mode": "bilinear"},
            ),
        )
        value = float_layer(builder, generator, value, "wide", out=4 * channels)
        return builder.add("add", "end", builder.add("pixel_shuffle", "shuffle", value, attrs={"factor": 2}), skip)

    model = built(make, channels=3)
    assert model.graph.size_multiple == 6 and model.receptive_radius is None and "6 x 6" in model.unbounded
    for size in ((6, 12), (24, 102)):
        check(model, picture(*size, 3))
    image = picture(13, 20, 3)
    fitted = np.pad(image, ((0, 5), (0, 4), (0, 0)), mode="edge")
    for isa in (*ISAS, "reference", "numpy"):
        engine = Engine(model, isa=isa)
        assert same_bits(np.ascontiguousarray(engine.run(fitted)[:13, :20]), np.ascontiguousarray(engine.run(image)))


@pytest.mark.parametrize(("channels", "factor"), [(1, 2), (3, 4), (8, 2), (12, 3)])
def test_pixel_shuffle_after_anything(channels, factor):
    def make(builder, generator, value):
        value = float_layer(builder, generator, value, "conv", out=channels * factor**2)
        value = builder.add("relu", "act", value)
        value = builder.add("pixel_shuffle", "shuffle", value, attrs={"factor": factor})
        return float_layer(builder, generator, value, "tail", out=2)

    check(built(make, channels=4), picture(5, 7, 4))


@pytest.mark.parametrize("channels", [5, 12, 48, 64, 72])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 23), (5, 121)])
def test_whole_networks(channels, size):
    model = small_model(channels=channels, scale=3)
    check(model, np.random.default_rng(0).random((*size, 3)).astype(np.float32))


def test_strips_do_not_show(monkeypatch):
    """The tail in strips of 8 rows, across two magnifications, equals the tail in one piece."""

    def make(builder, generator, value):
        skip = builder.add("resize", "skip", value, attrs={"factor": 4, "mode": "bicubic"})
        value = float_layer(builder, generator, value, "head", out=16)
        value = lb_block(builder, generator, value, "block")
        for index in range(2):
            value = float_layer(builder, generator, value, f"up{index}", out=32, kernel=5)
            value = builder.add("pixel_shuffle", f"shuffle{index}", value, attrs={"factor": 2})
        return builder.add("add", "sum", float_layer(builder, generator, value, "tail", out=3), skip)

    model = built(make, channels=3)
    image = picture(37, 11, 3)
    whole = Engine(model, isa=ISAS[0]).run(image)
    monkeypatch.setattr(program, "STRIP_BYTES", 1)
    strips = program.Program(model=model, weights=program.Weights(isa=compiled_isas()[ISAS[0]]), height=37, width=11)
    assert len(strips._strips) == 5
    assert same_bits(strips.run(image, 2), whole)
    assert same_bits(strips.run(image, 1), whole)  # a second run finds nothing of the first
    assert same_bits(whole, Engine(model, isa="reference").run(image))


def test_fusion_finds_the_body():
    """An LB block is one stage of six operations: three convolutions with their sums and signs, and three weighings."""
    model = built(lambda b, g, x: lb_block(b, g, lb_block(b, g, x, "one"), "two"), channels=48)
    ops = tile_ops(model.graph, model.tensors)
    assert len(ops) == 1 + 2 * 5
    stages = plan_stages(model.graph, ops).stages
    assert [len(stage.ops) for stage in stages] == [1, 5, 5]
    # Between two blocks only the sum and its signs are written.
    assert [len(stage.whole) for stage in stages] == [1, 2, 1]


def test_sums_take_the_place_of_what_they_add():
    """A tile of an LB block keeps two float maps, not three: the nearest cache holds little more."""
    model = built(lambda b, g, x: lb_block(b, g, lb_block(b, g, x, "one"), "two"), channels=64)
    made = program.Program(model=model, weights=program.Weights(isa=compiled_isas()[ISAS[0]]), height=9, width=99)
    tile = made._stages[1].tile
    assert 2 * 4 * 64 * tile <= made._scratch_bytes < 3 * 4 * 64 * tile


def test_buffers_of_a_deep_body_are_shared():
    def make(builder, generator, value):
        for index in range(6):
            value = lb_block(builder, generator, value, f"block{index}")
        return value

    model = built(make, channels=16)
    made = program.Program(model=model, weights=program.Weights(isa=compiled_isas()[ISAS[0]]), height=9, width=9)
    addresses = {buffer.ctypes.data for buffer in made._buffers.values()}
    assert len(made._buffers) == 13  # the input, six sums and six maps of signs
    assert len(addresses) <= 5  # input, output, one sum, two maps of signs


def test_one_engine_serves_many_threads_and_sizes():
    model = small_model(channels=16)
    engine = Engine(model, isa=ISAS[0], threads=2)
    images = [picture(3 + index, 20 - index, 3, seed=index) for index in range(6)]
    expected = [Engine(model, isa=ISAS[-1], threads=1).run(image) for image in images]
    found: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        for _ in range(3):
            found[index] = engine.run(images[index])

    workers = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(same_bits(found[index], expected[index]) for index in range(6))


def test_result_is_the_callers_own():
    engine = Engine(small_model(channels=8), isa=ISAS[0])
    first = engine.run(picture(5, 5, 3))
    copy = first.copy()
    engine.run(picture(5, 5, 3, seed=9))
    assert np.array_equal(first, copy)
