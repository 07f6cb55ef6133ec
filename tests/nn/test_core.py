"""Sign, its estimators, bit accumulation and BinaryConv2d against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from bam_plugin.nn import (
    ESTIMATORS,
    ActivationScale,
    BAMWeight,
    BatchNormSign,
    BinaryConv2d,
    accumulate_filters,
    decaying_sign,
    normalize_filters,
    set_progress,
    sign,
)
from bam_plugin.nn.activations import RSign


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sign_of_zero_is_plus_one_and_keeps_the_dtype(dtype):
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 5.0, -5.0], dtype=dtype)
    result = sign(x)
    assert result.dtype == dtype
    assert result.tolist() == [1, 1, 1, -1, 1, -1]


GRADIENTS = {
    "identity": lambda x: torch.ones_like(x),
    "clip": lambda x: ((x >= -1) & (x <= 1)).float(),
    "polynomial": lambda x: torch.where(x.abs() >= 1, 0.0, torch.where(x < 0, 2 + 2 * x, 2 - 2 * x)),
    "ede": lambda x: 1 / torch.cosh(x / 10).square(),  # at the start: k t = 1, t = 0.1
}


def test_every_estimator_has_a_formula_here():
    assert set(GRADIENTS) == set(ESTIMATORS)


@pytest.mark.parametrize("name", sorted(GRADIENTS))
def test_estimator_forward_is_the_sign_and_gradient_its_formula(name):
    x = torch.tensor([-3.0, -1.0, -0.7, -0.0, 0.0, 0.25, 1.0, 1.001, 4.0], requires_grad=True)
    upstream = torch.linspace(-2, 3, x.numel())
    result = ESTIMATORS[name](x)
    assert torch.equal(result, sign(x))
    result.backward(upstream)
    torch.testing.assert_close(x.grad, upstream * GRADIENTS[name](x.detach()))


# t and k t of IR-Net's k t (1 - tanh(t x)^2) = k t / cosh(t x)^2.
@pytest.mark.parametrize(
    ("progress", "steepness", "slope"),
    [(0.0, 0.1, 1), (0.25, 10**-0.5, 1), (0.5, 1, 1), (0.75, 10**0.5, 10**0.5), (1.0, 10, 10)],
)
def test_the_decaying_estimator_sharpens_with_the_progress(progress, steepness, slope):
    x = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64, requires_grad=True)
    result = decaying_sign(x, progress)
    assert torch.equal(result, sign(x))
    (gradient,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(gradient, slope / torch.cosh(steepness * x.detach()).square())


def test_progress_reaches_progressive_estimators_only():
    network = torch.nn.Sequential(
        BatchNormSign(num_feat=1, estimator="ede"), torch.nn.Sequential(RSign(num_feat=1, estimator="ede")),
        BatchNormSign(num_feat=1),
    )  # fmt: skip
    x = torch.tensor([0.5]).view(1, 1, 1, 1)

    def gradients() -> list[float]:
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        outs = [network[1](leaves[0]), network[2].maps(leaves[1])[0][0]]
        return [float(torch.autograd.grad(out.sum(), leaf)[0]) for out, leaf in zip(outs, leaves, strict=True)]

    before = gradients()
    assert set_progress(network, 1.0) == 2
    assert [network[0].progress, network[2].progress] == [1.0, 0.0]
    after = gradients()
    assert before[0] > 0.99 and after[0] < 0.01 and before[1] == after[1] == 1
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            set_progress(network, wrong)


def test_normalize_filters_uses_the_biased_variance_of_each_filter():
    weight = torch.tensor([[1.0, 2.0, 3.0, 6.0], [-1.0, -1.0, 1.0, 1.0]]).view(2, 1, 2, 2)
    # filter 0: mean 3, deviations -2 -1 0 3, variance 14 / 4; filter 1: mean 0, variance 1
    expected = torch.tensor([[-2.0, -1.0, 0.0, 3.0], [-1.0, -1.0, 1.0, 1.0]])
    expected /= torch.tensor([[3.5 + 1e-5], [1 + 1e-5]]).sqrt()
    torch.testing.assert_close(normalize_filters(weight), expected.view(2, 1, 2, 2))


def filters(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), 1, 2, 2)


W1 = filters([1, -1, 2, -2], [4, 0, 0, 0])
W2 = filters([-3, 2, 0, 1], [1, 1, 1, -3])


def test_weight_accumulation_by_hand():
    """Eq. 3 with a = (1, 1): W1 + W2 = [-2, 1, 2, -1], [5, 1, 1, -3]; minus the means 0 and 1: signs; E|W2|."""
    ((signs, scale),) = BAMWeight(group_index=1).decompose(W2, (W1,))
    assert torch.equal(signs, filters([-1, 1, 1, -1], [1, 1, 1, -1]))
    assert torch.equal(scale, torch.tensor([1.5, 1.5]))


def test_weight_accumulation_by_hand_with_alpha():
    """Eq. 3 with a = (3, -1): 3 W1 - W2 = [6, -5, 6, -7], [11, -1, -1, 3]; means 0 and 3."""
    weight = BAMWeight(alpha="learned", group_index=1)
    with torch.no_grad():
        weight.alpha.copy_(torch.tensor([3.0, -1.0]))
    ((signs, scale),) = weight.decompose(W2, (W1,))
    assert torch.equal(signs, filters([1, -1, 1, -1], [1, -1, -1, 1]))
    assert torch.equal(scale, torch.tensor([1.5, 1.5]))
    effective = weight(W2, (W1,))
    assert torch.equal(effective, signs * 1.5)


def test_accumulation_without_earlier_filters_is_the_filter_itself():
    assert torch.equal(accumulate_filters(W1, (), None), W1)


def test_alpha_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"3 elements.*2 filters.*group_index"):
        accumulate_filters(W2, (W1,), torch.ones(3))


@pytest.mark.parametrize("alpha", ["one", "learned"])
@pytest.mark.parametrize("gradient", ["latent", "accumulated"])
def test_weight_gradient(alpha, gradient):
    """Eq. 8 reaches the current latent alone; `accumulated` reaches all, weighted by alpha; alpha gets sum(g W_i)."""
    binarizer = BAMWeight(alpha=alpha, gradient=gradient, group_index=1)
    factors = torch.ones(2)
    if alpha == "learned":
        factors = torch.tensor([0.5, 2.0])
        with torch.no_grad():
            binarizer.alpha.copy_(factors)
    earlier, latent = W1.clone().requires_grad_(), W2.clone().requires_grad_()
    g = torch.randn_like(latent)
    binarizer(latent, (earlier,)).backward(g)
    if gradient == "latent":
        assert earlier.grad is None
        torch.testing.assert_close(latent.grad, g)
    else:
        torch.testing.assert_close(earlier.grad, factors[0] * g)
        torch.testing.assert_close(latent.grad, factors[1] * g)
    if alpha == "learned":
        expected = torch.stack([(g * W1).sum(), (g * W2).sum()])
        torch.testing.assert_close(binarizer.alpha.grad, expected)


def test_activation_scale_modes_by_hand():
    activation = torch.tensor([[1.0, -3.0], [2.0, 1.0]]).view(1, 2, 1, 2)  # two channels, two pixels
    mean_abs = torch.tensor([1.5, 2.0]).view(1, 1, 1, 2)
    mean = torch.tensor([1.5, -1.0]).view(1, 1, 1, 2)
    cases = [
        ({"mode": "one", "offset": 1.0}, activation),
        ({"mode": "one", "offset": 0.5}, 0.5 * activation),
        ({"mode": "scalar", "init": 3.0}, 3 * activation),
        ({"mode": "spatial", "init": 2.0}, 2 * mean_abs * activation),
        ({"mode": "spatial", "init": 2.0, "statistic": "mean"}, 2 * mean * activation),
        ({"mode": "spatial", "init": 2.0, "offset": 0.25}, (0.25 + 2 * mean_abs) * activation),
    ]
    for options, expected in cases:
        torch.testing.assert_close(ActivationScale(**options)(activation), expected, msg=str(options))


def test_unknown_options_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"'one'.*found 'two'"):
        ActivationScale(mode="two")
    with pytest.raises(ValueError, match=r"mean_abs.*found 'max'"):
        ActivationScale(statistic="max")
    with pytest.raises(ValueError, match=r"learned.*found 'x'"):
        BAMWeight(alpha="x")
    with pytest.raises(ValueError, match=r"accumulated.*found 'x'"):
        BAMWeight(gradient="x")
    with pytest.raises(ValueError, match=r"polynomial.*found 'x'"):
        BatchNormSign(num_feat=2, estimator="x")
    for option in ("weight_binarizer", "activation_binarizer", "output_scale"):
        with pytest.raises(ValueError, match=rf"{option}.*found 'x'"):
            BinaryConv2d(in_channels=2, out_channels=2, **{option: "x"})


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_batch_norm_sign_is_a_learned_threshold_per_channel(estimator):
    activation = BatchNormSign(num_feat=2, estimator=estimator).eval()
    with torch.no_grad():
        activation.norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
        activation.norm.weight.copy_(torch.tensor([1.0, -1.0]))
    x = torch.tensor([[0.9, 1.1], [-2.1, -1.9]]).view(1, 2, 1, 2)
    assert torch.equal(activation(x), torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).view(1, 2, 1, 2))


@pytest.mark.parametrize("output_scale", [None, "scalar", "channel"])
@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(3, 1, None), (1, 1, None), (3, 2, None), (3, 1, 0)])
def test_conv_training_and_evaluation_agree(kernel_size, stride, padding, output_scale):
    conv = BinaryConv2d(
        in_channels=5, out_channels=7, kernel_size=kernel_size, stride=stride, padding=padding,
        output_scale=output_scale,
    )  # fmt: skip
    x = torch.randn(2, 5, 9, 8)
    conv.binarize_activation.eval()
    training = conv(x)
    conv.eval()
    torch.testing.assert_close(training, conv(x), rtol=1e-5, atol=1e-5)


def test_conv_evaluation_is_scale_times_integer_dot_with_zeros_outside():
    """Literal loops: taps outside the image count 0, neither +1 nor -1."""
    conv = BinaryConv2d(in_channels=3, out_channels=2, output_scale="channel").eval()
    x = torch.randn(1, 3, 4, 5)
    ((signs, scale),) = conv.decompose()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    signs_in = sign(conv.binarize_activation.norm(x))[0]
    result = conv(x)[0]
    for o in range(2):
        for row in range(4):
            for column in range(5):
                dot = 0
                for i in range(3):
                    for ky in range(3):
                        for kx in range(3):
                            y, z = row + ky - 1, column + kx - 1
                            if 0 <= y < 4 and 0 <= z < 5:
                                dot += int(signs[o, i, ky, kx]) * int(signs_in[i, y, z])
                assert result[o, row, column] == scale[o] * dot


def test_conv_gradient_reaches_latent_input_and_output_scale():
    conv = BinaryConv2d(in_channels=4, out_channels=4, output_scale="channel")
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    conv(x).square().sum().backward()
    for name, value in [("x", x), *conv.named_parameters()]:
        assert torch.isfinite(value.grad).all() and value.grad.abs().sum() > 0, name


def test_conv_latent_gradient_equals_that_of_the_effective_weight():
    """Eq. 8 through the convolution: dL/dW is what a float convolution with weight W^B would get."""
    conv = BinaryConv2d(in_channels=4, out_channels=3)
    x = torch.randn(2, 4, 6, 6)
    signs_in = conv.binarize_activation(x).detach()
    effective = conv.binarize_weight(conv.weight).detach().requires_grad_()
    F.conv2d(signs_in, effective, padding=1).cos().sum().backward()
    conv.binarize_activation.norm.reset_running_stats()
    conv(x).cos().sum().backward()
    torch.testing.assert_close(conv.weight.grad, effective.grad)
