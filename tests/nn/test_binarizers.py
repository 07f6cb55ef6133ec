"""Every binarizer of both tables against its formula: values, ties, scales and gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from bam_plugin.nn import ACTIVATION_BINARIZERS, WEIGHT_BINARIZERS, BinaryConv2d
from bam_plugin.nn.sign import sign

# Weights with a zero and with magnitudes on both sides of 1.
LATENT = torch.tensor([[0.0, -2.0, 0.5, 0.3], [1.5, -0.2, -0.0, -0.9], [0.1, 0.2, 0.3, -0.4]]).view(3, 1, 2, 2)
PER_FILTER = LATENT.abs().mean(dim=(1, 2, 3), keepdim=True)
INSIDE = (LATENT.abs() <= 1).float()

REST = LATENT - sign(LATENT) * PER_FILTER
SKETCH = sign(LATENT) * PER_FILTER + sign(REST) * REST.abs().mean(dim=(1, 2, 3), keepdim=True)

# name: (value, dL/dW / g); bam with an empty group, abc in its own tests.
WEIGHT_FORMULAS = {
    "bam": (sign(LATENT - LATENT.mean((1, 2, 3), keepdim=True)) * PER_FILTER, torch.ones_like(LATENT)),
    "bnn": (sign(LATENT), INSIDE),
    "dorefa": (sign(LATENT) * LATENT.abs().mean(), torch.ones_like(LATENT)),
    "xnor": (sign(LATENT) * PER_FILTER, 1 / 4 + PER_FILTER * INSIDE),
    "bireal": (sign(LATENT) * PER_FILTER, PER_FILTER * INSIDE),
    "react": (sign(LATENT) * PER_FILTER, INSIDE),
    "sketch": (SKETCH, torch.ones_like(LATENT)),
}


def test_every_weight_binarizer_has_a_formula_here():
    assert set(WEIGHT_FORMULAS) | {"abc"} == set(WEIGHT_BINARIZERS)


@pytest.mark.parametrize("name", sorted(WEIGHT_FORMULAS))
def test_weight_value_and_gradient(name):
    value, factor = WEIGHT_FORMULAS[name]
    latent = LATENT.clone().requires_grad_()
    g = torch.randn_like(latent)
    result = WEIGHT_BINARIZERS[name]()(latent)
    torch.testing.assert_close(result, value)
    result.backward(g)
    torch.testing.assert_close(latent.grad, g * factor)


@pytest.mark.parametrize("name", sorted(WEIGHT_BINARIZERS))
def test_decomposition_is_signs_and_scales_of_the_effective_weight(name):
    binarizer = WEIGHT_BINARIZERS[name]()
    latent = torch.randn(4, 3, 3, 3)
    pairs = binarizer.decompose(latent)
    assert len(pairs) == binarizer.bases
    for signs, scale in pairs:
        assert signs.shape == latent.shape and set(signs.unique().tolist()) == {-1.0, 1.0}
        assert scale.shape == (4,) and not scale.requires_grad
    total = sum(signs * scale.view(-1, 1, 1, 1) for signs, scale in pairs)
    torch.testing.assert_close(binarizer(latent), total)


@pytest.mark.parametrize("granularity", ["layer", "filter"])
@pytest.mark.parametrize("bases", [1, 2, 3, 5])
def test_abc_weights_are_the_least_squares_fit_of_shifted_signs(bases, granularity):
    latent = torch.randn(4, 3, 3, 3)
    pairs = WEIGHT_BINARIZERS["abc"](bases=bases, granularity=granularity).decompose(latent)
    deviation = latent.std(unbiased=False)
    for index, (signs, _) in enumerate(pairs):
        shift = 0 if bases == 1 else -1 + 2 * index / (bases - 1)
        assert torch.equal(signs, sign(latent - latent.mean() + shift * deviation))
    problems = [slice(None)] if granularity == "layer" else [slice(o, o + 1) for o in range(4)]
    for problem in problems:
        matrix = torch.stack([signs[problem].flatten() for signs, _ in pairs], dim=1)
        expected = torch.linalg.lstsq(matrix, latent[problem].reshape(-1, 1)).solution[:, 0]
        scales = torch.stack([scale[problem] for _, scale in pairs], dim=1)
        torch.testing.assert_close(scales, expected.expand_as(scales), rtol=1e-4, atol=1e-5)


def test_each_base_of_a_sketch_comes_closer_to_the_weight():
    latent = torch.randn(4, 3, 3, 3)
    errors = [(latent - WEIGHT_BINARIZERS["sketch"](bases=bases)(latent)).square().sum() for bases in (1, 2, 3, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1 * errors[0]


def test_abc_with_one_base_is_the_mean_magnitude_around_the_mean():
    """M = 1: c = sum(W B) / K with B = Sign(W - E(W))."""
    ((signs, scale),) = WEIGHT_BINARIZERS["abc"](bases=1).decompose(LATENT)
    assert torch.equal(signs, sign(LATENT - LATENT.mean()))
    torch.testing.assert_close(scale, (LATENT * signs).mean().expand(3))


def test_abc_weight_gradient_is_the_sum_of_the_scales_and_equal_bases_are_survived():
    latent = torch.randn(2, 3, 3, 3, requires_grad=True)
    g = torch.randn_like(latent)
    binarizer = WEIGHT_BINARIZERS["abc"](bases=3)
    binarizer(latent).backward(g)
    total = sum(float(scale[0]) for _, scale in binarizer.decompose(latent))
    torch.testing.assert_close(latent.grad, total * g)
    constant = binarizer(torch.ones(2, 3, 3, 3))  # all three bases are equal
    torch.testing.assert_close(constant, torch.ones(2, 3, 3, 3))


# Inputs of one channel with ties; a normalization in evaluation is (almost exactly) the identity.
X = torch.tensor([-2.0, -1.0, -0.6, -0.0, 0.0, 0.3, 0.5, 1.0, 1.7])
ACTIVATION_FORMULAS = {
    "bn_sign": (sign(X), (X.abs() <= 1).float()),
    "xnor": (sign(X), (X.abs() <= 1).float()),
    "sign": (sign(X), (2 - 2 * X.abs()).clamp(min=0)),
    "rsign": (sign(X), (2 - 2 * X.abs()).clamp(min=0)),
    "dorefa": (((X + 0.5) >= 0.5).float(), ((X >= -0.5) & (X <= 0.5)).float()),
    "abc": (sign(X - 0.5), ((X >= 0) & (X <= 1)).float()),
    "float": (X, torch.ones_like(X)),
}


def as_map(x):
    return x.view(1, 1, 1, -1)


def make_activation(name, **options):
    """In evaluation, with an exact identity as normalization."""
    binarizer = ACTIVATION_BINARIZERS[name](num_feat=1, **options).eval()
    if binarizer.norm is not None:
        binarizer.norm.eps = 0.0
    return binarizer


def test_every_activation_binarizer_has_a_formula_here():
    assert set(ACTIVATION_FORMULAS) == set(ACTIVATION_BINARIZERS)


@pytest.mark.parametrize("name", sorted(ACTIVATION_FORMULAS))
def test_activation_value_and_gradient(name):
    value, factor = ACTIVATION_FORMULAS[name]
    x = as_map(X).requires_grad_()
    g = torch.randn_like(x)
    binarizer = make_activation(name)
    result = binarizer(x)
    assert torch.equal(result.flatten(), value)
    result.backward(g)
    torch.testing.assert_close(x.grad.flatten(), g.flatten() * factor)
    alphabet = {"-1,+1": {-1.0, 1.0}, "0,1": {0.0, 1.0}}.get(binarizer.alphabet)
    for signs, _ in binarizer.maps(binarizer.value(x)):
        assert alphabet is None or set(signs.flatten().tolist()) == alphabet


@pytest.mark.parametrize("name", sorted(set(ACTIVATION_BINARIZERS) - {"float"}))
def test_maps_are_one_step_per_channel(name):
    """The promise to packed files: a threshold and a direction describe each base."""
    binarizer = ACTIVATION_BINARIZERS[name](num_feat=6)
    for parameter in binarizer.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        binarizer(torch.randn(4, 6, 8, 8) * 2 + 1)
        x = torch.linspace(-20, 20, 4001).view(1, 1, 1, -1).expand(1, 6, 1, -1)
        for signs, _ in binarizer.maps(binarizer.eval().value(x)):
            steps = (signs[..., 1:] != signs[..., :-1]).sum(-1).flatten()
            assert steps.tolist() == [1] * 6


def test_rsign_moves_the_threshold_and_learns_it():
    binarizer = make_activation("rsign")
    with torch.no_grad():
        binarizer.threshold.fill_(0.5)
    x = as_map(X)
    result = binarizer(x)
    assert torch.equal(result, sign(x - 0.5))
    g = torch.randn_like(x)
    result.backward(g)
    expected = -(g * (2 - 2 * (x - 0.5).abs()).clamp(min=0)).sum()
    torch.testing.assert_close(binarizer.threshold.grad.sum(), expected)


def test_abc_activation_with_three_bases():
    binarizer = make_activation("abc", bases=3)
    assert binarizer.shift.tolist() == [-1.5, 0.0, 1.5]
    with torch.no_grad():
        binarizer.factor.copy_(torch.tensor([0.5, 1.0, 2.0]))
    x = as_map(X).requires_grad_()
    g = torch.randn_like(x)
    maps = [sign(X + shift - 0.5) for shift in (-1.5, 0.0, 1.5)]
    windows = [((X + shift >= 0) & (X + shift <= 1)).float() for shift in (-1.5, 0.0, 1.5)]
    result = binarizer(x)
    torch.testing.assert_close(result.flatten(), 0.5 * maps[0] + maps[1] + 2 * maps[2])
    result.backward(g)
    flat = g.flatten()
    torch.testing.assert_close(x.grad.flatten(), flat * (0.5 * windows[0] + windows[1] + 2 * windows[2]))
    torch.testing.assert_close(binarizer.factor.grad, torch.stack([(flat * signs).sum() for signs in maps]))
    expected = [factor * (flat * window).sum() for factor, window in zip((0.5, 1.0, 2.0), windows, strict=True)]
    torch.testing.assert_close(binarizer.shift.grad, torch.stack(expected))


def test_xnor_multiplies_by_the_window_mean_of_the_magnitude():
    conv = BinaryConv2d(in_channels=3, out_channels=2, weight_binarizer="xnor", activation_binarizer="xnor").eval()
    x = torch.randn(1, 3, 5, 4)
    normalized = conv.binarize_activation.norm(x).detach()
    padded = F.pad(normalized.abs().mean(1), (1, 1, 1, 1))[0]
    window_mean = torch.tensor([[padded[r : r + 3, c : c + 3].mean() for c in range(4)] for r in range(5)])
    ((signs, scale),) = conv.decompose()
    dots = F.conv2d(sign(normalized), signs, padding=1)
    torch.testing.assert_close(conv(x), dots * scale.view(1, -1, 1, 1) * window_mean)


COMBINATIONS = sorted(itertools.product(WEIGHT_BINARIZERS, ACTIVATION_BINARIZERS))


@pytest.mark.parametrize(("weight", "activation"), COMBINATIONS)
def test_any_weight_side_works_with_any_activation_side(weight, activation):
    """Training and evaluation agree, and the latent weight and the input get finite, non-zero gradients."""
    options = {"abc": {"bases": 2}}
    conv = BinaryConv2d(
        in_channels=4,
        out_channels=3,
        weight_binarizer=weight,
        activation_binarizer=activation,
        activation_options=options.get(activation),
        output_scale="channel",
    )
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    conv(x).square().sum().backward()
    for value in (conv.weight, x, conv.output_scale):
        assert torch.isfinite(value.grad).all() and value.grad.abs().sum() > 0
    conv.binarize_activation.eval()
    training = conv(x)
    torch.testing.assert_close(training, conv.eval()(x), rtol=1e-4, atol=1e-4)


def test_bad_options_are_refused():
    for table, name, options in [
        (WEIGHT_BINARIZERS, "abc", {"bases": 0}),
        (WEIGHT_BINARIZERS, "abc", {"granularity": "pixel"}),
        (WEIGHT_BINARIZERS, "sketch", {"bases": 0}),
        (ACTIVATION_BINARIZERS, "abc", {"bases": 0, "num_feat": 1}),
        (ACTIVATION_BINARIZERS, "rsign", {"estimator": "x", "num_feat": 1}),
    ]:
        with pytest.raises(ValueError, match="found"):
            table[name](**options)
