"""The reference kernels against PyTorch, and the exactness that they promise."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.packed_models import random_filters, random_floats, small_model
from torch import nn

from bam_plugin.engine import Engine, blas, engine
from bam_plugin.nn.activations import batch_norm_affine
from bam_plugin.nn.upsampling import bicubic
from bam_plugin.packed import EngineError, bits
from bam_plugin.packed.ops import convolution, pointwise, sizes
from bam_plugin.packed.thresholds import step_thresholds
from bam_plugin.pictures.imresize import imresize


def to_torch(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(value.transpose(2, 0, 1)))[None]


def from_torch(value: torch.Tensor) -> np.ndarray:
    return value[0].permute(1, 2, 0).contiguous().numpy()


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("channels", [1, 3, 48, 64, 65, 130])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 4)])
def test_binary_conv_equals_the_float_convolution_of_signs(kernel, channels, size):
    generator = np.random.default_rng(channels)
    negative = generator.random((*size, channels)) < 0.5
    packed = random_filters(generator, 5, kernel, channels)
    scale = random_floats(generator, 5)
    filters = np.where(bits.unpack_filters(packed, kernel, channels), -1.0, 1.0).astype(np.float32)
    arguments = {"weight": packed, "scale": scale, "kernel": kernel, "channels": channels}
    for alphabet, low in (("-1,+1", -1.0), ("0,1", 0.0)):
        values = torch.from_numpy(np.where(negative, low, 1.0).astype(np.float32).transpose(2, 0, 1))[None]
        dot = from_torch(F.conv2d(values, torch.from_numpy(filters.transpose(0, 3, 1, 2)), padding=kernel // 2))
        for module in (convolution, blas):
            result = module.binary_conv2d(bits.bits_to_words(negative), alphabet=alphabet, **arguments)
            assert result.dtype == np.float32
            assert np.array_equal(result, scale * dot), module.__name__


def test_fused_multiply_add_rounds_once():
    generator = np.random.default_rng(5)
    count = 3000
    left, right = random_floats(generator, count), random_floats(generator, count)
    # Addends that cancel or tie with the product are where two roundings would differ from one.
    addend = -(left * right) + random_floats(generator, count) * np.float32(2.0) ** generator.integers(-40, 2, count)
    addend = addend.astype(np.float32)
    result = convolution.fused_multiply_add(left, right, addend)
    for a, b, c, found in zip(left, right, addend, result, strict=True):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        off = abs(Fraction(float(found)) - exact)
        for neighbour in (np.nextafter(found, np.float32(np.inf)), np.nextafter(found, np.float32(-np.inf))):
            assert off <= abs(Fraction(float(neighbour)) - exact)
    # 1 + 2^-24 + 2^-60: rounding to float64 first would lose the last term and tie to even.
    tie = convolution.fused_multiply_add(np.float32([2**-30]), np.float32([2**-30]), np.float32([1]))
    assert tie == 1
    product = np.float32([1 + 2**-12])  # its square is 1 + 2^-11 + 2^-24: half a unit above a float32, plus nothing
    assert convolution.fused_multiply_add(product, product, np.float32([2**-50])) > np.float32(1 + 2**-11)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_conv2d(kernel):
    generator = np.random.default_rng(kernel)
    value, weight, bias = (
        random_floats(generator, 6, 9, 7),
        random_floats(generator, 5, 7, kernel, kernel),
        random_floats(generator, 5),
    )
    expected = from_torch(
        F.conv2d(to_torch(value), torch.from_numpy(weight), torch.from_numpy(bias), padding=kernel // 2)
    )
    for module in (convolution, blas):
        np.testing.assert_allclose(module.conv2d(value, weight=weight, bias=bias), expected, rtol=1e-5, atol=2e-5)
    without = convolution.conv2d(value, weight=weight)
    np.testing.assert_allclose(without + bias, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("groups", "out", "stride"), [(1, 5, 2), (6, 6, 1), (6, 12, 3), (2, 8, 1), (3, 3, 2)])
def test_conv2d_in_groups_and_with_strides(groups, out, stride):
    generator = np.random.default_rng(out)
    value, weight = random_floats(generator, 6, 12, 6), random_floats(generator, out, 6 // groups, 3, 3)
    options = {"groups": groups, "stride": stride}
    expected = from_torch(F.conv2d(to_torch(value), torch.from_numpy(weight), padding=1, **options))
    for module in (convolution, blas):
        np.testing.assert_allclose(module.conv2d(value, weight=weight, **options), expected, rtol=1e-5, atol=2e-5)


CASES = {
    "relu": (lambda v: pointwise.relu(v), lambda t: F.relu(t)),
    "leaky_relu": (lambda v: pointwise.leaky_relu(v, slope=0.125), lambda t: F.leaky_relu(t, 0.125)),
    "prelu": (
        lambda v: pointwise.prelu(v, slope=np.float32([0.5, -0.3, 2, 0])),
        lambda t: F.prelu(t, torch.tensor([0.5, -0.3, 2, 0])),
    ),
    "clamp": (lambda v: pointwise.clamp(v, low=-0.5, high=0.25), lambda t: t.clamp(-0.5, 0.25)),
    "scale": (lambda v: pointwise.scale(v, factor=0.1), lambda t: t * 0.1),
    "pixel_shuffle": (lambda v: sizes.pixel_shuffle(v, factor=2), lambda t: F.pixel_shuffle(t, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_simple_ops_equal_torch(name):
    value = random_floats(np.random.default_rng(1), 5, 6, 4)
    ours, theirs = CASES[name]
    assert np.array_equal(ours(value), from_torch(theirs(to_torch(value))))


@pytest.mark.parametrize("channels", [1, 3, 16, 48, 50])
def test_channel_mean(channels):
    value = random_floats(np.random.default_rng(2), 4, 5, channels)
    exact = value.astype(np.float64)
    for statistic, expected in (("mean", exact), ("mean_abs", np.abs(exact))):
        result = pointwise.channel_mean(value, statistic=statistic)
        assert result.shape == (4, 5, 1) and result.dtype == np.float32
        np.testing.assert_allclose(result[..., 0], expected.mean(axis=-1), rtol=1e-5, atol=1e-6)
    # The order of the sum is part of the contract: lanes first, then halves.
    lanes = np.zeros(16, np.float32)
    for channel in range(channels):
        lanes[channel % 16] = lanes[channel % 16] + value[1, 2, channel]
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half : 2 * half]
    assert pointwise.channel_mean(value, statistic="mean")[1, 2, 0] == lanes[0] * np.float32(1 / channels)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5)])
def test_resize(mode, factor, size):
    value = random_floats(np.random.default_rng(3), *size, 3)
    options = {} if mode == "nearest" else {"align_corners": False}
    expected = from_torch(F.interpolate(to_torch(value), scale_factor=factor, mode=mode, **options))
    np.testing.assert_allclose(sizes.resize(value, factor=factor, mode=mode), expected, atol=2e-6)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("coefficient", [-0.5, -0.75])
def test_bicubic_of_the_networks_is_that_of_the_file(factor, coefficient):
    value = random_floats(np.random.default_rng(3), 7, 5, 3)
    found = from_torch(bicubic(to_torch(value), factor, coefficient))
    assert np.array_equal(sizes.resize(value, factor=factor, mode="bicubic", coefficient=coefficient), found)
    theirs = from_torch(F.interpolate(to_torch(value), scale_factor=factor, mode="bicubic", align_corners=False))
    assert np.allclose(found, theirs, atol=2e-6) == (coefficient == -0.75 or factor == 1)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_matlabs(factor):
    """Away from the border, which MATLAB mirrors, equal to the interpolation that makes and measures data."""
    value = np.random.default_rng(3).random((12, 13, 3))
    expected = imresize(value, scale=factor)[2 * factor : -2 * factor, 2 * factor : -2 * factor]
    found = from_torch(bicubic(to_torch(value.astype(np.float32)), factor))
    np.testing.assert_allclose(found[2 * factor : -2 * factor, 2 * factor : -2 * factor], expected, atol=2e-6)


def test_resize_of_a_part_equals_the_part():
    value = random_floats(np.random.default_rng(3), 40, 30, 3)
    for mode in ("nearest", "bilinear", "bicubic"):
        whole = sizes.resize(value, factor=3, mode=mode)
        part = sizes.resize(value[10:30, 7:25], factor=3, mode=mode)
        assert np.array_equal(whole[36:84, 27:69], part[6:54, 6:48])


def test_thresholds_are_exact_around_every_step():
    generator = np.random.default_rng(4)
    count = 4000
    a = random_floats(generator, count) * np.float32(10.0) ** generator.integers(-12, 12, count).astype(np.float32)
    b = random_floats(generator, count) * np.float32(10.0) ** generator.integers(-12, 12, count).astype(np.float32)
    a[:7] = [0, 0, 0, -0.0, 1, -1, 1e-45]
    b[:7] = [1, -1, 0, -0.0, 0, 0, -1]
    threshold, flip = step_thresholds(a, b)
    centre = threshold.copy()
    points = [centre, np.zeros_like(a), -np.zeros_like(a), np.full_like(a, 3e38), np.full_like(a, -3e38)]
    for direction in (np.inf, -np.inf):
        point = centre
        for _ in range(3):
            point = np.nextafter(point, np.float32(direction))
            points.append(point)
    with np.errstate(all="ignore"):
        points += [-b / a, random_floats(generator, count)]
        for x in points:
            usable = np.isfinite(x)
            expected = x * a + b >= 0
            assert np.array_equal(expected[usable], ((x >= threshold) ^ flip.astype(bool))[usable])


def test_thresholds_match_batch_norm_in_torch():
    norm = nn.BatchNorm2d(64).eval()
    generator = np.random.default_rng(6)
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        tensor.data.copy_(torch.from_numpy(random_floats(generator, 64)))
    norm.running_var.uniform_(0.1, 3)
    threshold, flip = step_thresholds(*(part.numpy() for part in batch_norm_affine(norm)))
    value = random_floats(generator, 40, 40, 64)
    with torch.no_grad():
        expected = from_torch(norm(to_torch(value)))
    positive = ~bits.words_to_bits(pointwise.threshold(value, threshold=threshold, flip=flip), 64)
    clear = np.abs(expected) > 1e-5  # torch rounds a and b in its own order; next to zero signs may differ
    assert clear.mean() > 0.999
    assert np.array_equal(positive[clear], (expected >= 0)[clear])


def test_engine_numpy_equals_reference_and_knows_its_input():
    model = small_model(channels=20)
    image = np.random.default_rng(0).random((9, 11, 3)).astype(np.float32)
    exact = Engine(model, isa="reference").run(image)
    # Float convolutions of the BLAS may round differently, so signs may flip; on this image none does.
    np.testing.assert_allclose(Engine(model, isa="numpy").run(image), exact, atol=1e-5)
    engine = Engine(model)
    for wrong in (image[..., :2], image.astype(np.float64), image[0], image[:0], image.tolist()):
        with pytest.raises(EngineError):
            engine.run(wrong)
    with pytest.raises(EngineError, match="available"):
        Engine(model, isa="mmx")
    with pytest.raises(EngineError, match="threads"):
        Engine(model, threads=0)


def test_missing_kernels_are_told_once(monkeypatch, caplog):
    monkeypatch.delenv("BAM_ISA", raising=False)
    monkeypatch.setattr("bam_plugin.engine.kernels.compiled_isas", dict)
    engine._warn_of_no_kernels.cache_clear()
    with caplog.at_level("WARNING"):
        assert Engine(small_model()).isa == "numpy"
        assert Engine(small_model()).isa == "numpy"
    assert len(caplog.records) == 1 and "without its compiled kernels" in caplog.text


def test_isa_follows_the_environment(monkeypatch):
    monkeypatch.setenv("BAM_ISA", "reference")
    assert Engine(small_model()).isa == "reference"
    assert Engine(small_model(), isa="numpy").isa == "numpy"
    monkeypatch.setenv("BAM_ISA", "mmx")
    with pytest.raises(EngineError):
        Engine(small_model())


def test_result_of_a_tile_equals_its_part_of_the_whole():
    model = small_model(channels=9, blocks=1)
    radius = model.receptive_radius
    image = np.random.default_rng(0).random((30, 26, 3)).astype(np.float32)
    engine = Engine(model, isa="reference")
    whole = engine.run(image)
    top, left = 4, 3
    part = engine.run(image[top:, left:])
    cut = 2 * radius
    assert np.array_equal(whole[2 * top + cut :, 2 * left + cut :], part[cut:, cut:])
