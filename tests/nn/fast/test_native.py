"""The compiled passes of training against the same written with torch, in float64 where they sum."""

import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers.fast_path import assert_same, example, shaken, trained_once
from torch import Tensor, nn

from bam_plugin.nn import ESTIMATORS, BinaryConv2d, HPBBlock
from bam_plugin.nn.fast import fused, native

# Where it can be built, a missing library is a failure.
pytestmark = pytest.mark.skipif(
    native.library() is None and (sys.platform != "linux" or shutil.which("gcc") is None),
    reason="needs GCC to be built",
)
CHANNELS = 48


@pytest.fixture(params=[1, 2, 3], autouse=True)
def _threads(request):
    """Parts of equal and of different size: 3 * 7 * 5 pixels and more than one run of 256."""
    torch.manual_seed(2)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def make_map(dtype=torch.float32, size=(3, 7, 5), channels=CHANNELS) -> Tensor:
    x = torch.randn(size[0], channels, *size[1:]) * 2 + 0.3
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def row(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def test_which_maps_are_taken():
    x = make_map()
    assert native.usable(x, x.bfloat16())
    for other in (x.double(), x.half(), x.contiguous(), make_map(channels=24), x[:, :, ::2]):
        assert not native.usable(x, other)
    with native.switched(False):
        assert not native.usable(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_signs_with_ties_and_zeros_of_both_signs(dtype):
    x, slope, shift = make_map(), torch.randn(CHANNELS), torch.randn(CHANNELS)
    x[:, :4] = torch.tensor([0.0, -0.0, 1.0, -1.0]).view(1, 4, 1, 1)
    slope[:4], shift[:4] = torch.tensor([1.0, 1.0, -2.0, 2.0]), torch.tensor([-0.0, -0.0, 2.0, 2.0])
    x[0, 5, 0, 0] = float("nan")
    found = native.signs(x, slope, shift, dtype)
    expected = torch.where(x * row(slope) + row(shift) >= 0, 1.0, -1.0).to(dtype)
    assert found.dtype == dtype and found.stride() == x.stride()
    assert torch.equal(found, expected)
    assert bool((found[:, :4] == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales(dtype):
    dot = torch.randint(-200, 200, (3, CHANNELS, 7, 5)).to(dtype).contiguous(memory_format=torch.channels_last)
    scale = torch.randn(CHANNELS)
    assert torch.equal(native.scaled(dot, scale), dot.float() * row(scale))


@pytest.mark.parametrize("size", [(3, 7, 5), (4, 19, 23)])
@pytest.mark.parametrize("center", [0.0, 300.0])
def test_folded_normalization_is_that_of_torch(size, center):
    """Far from zero, too, where a variance from squares alone would have no digits left."""
    x = make_map(size=size) + center
    norm = nn.BatchNorm2d(CHANNELS, momentum=0.3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    reference = nn.BatchNorm2d(CHANNELS, momentum=0.3).double()
    reference.load_state_dict(norm.state_dict())
    mean, inverse_deviation, slope, shift = native.fold(
        x, norm.weight, norm.bias, (norm.running_mean, norm.running_var), momentum=0.3, eps=norm.eps
    )
    expected = reference(x.double()).float()
    torch.testing.assert_close(x * row(slope) + row(shift), expected, rtol=0, atol=3e-6 * max(1, center))
    torch.testing.assert_close(norm.running_mean, reference.running_mean.float())
    torch.testing.assert_close(norm.running_var, reference.running_var.float(), rtol=1e-4, atol=0)
    torch.testing.assert_close(mean, x.double().mean(dim=(0, 2, 3)).float())
    deviation = x.double().var(dim=(0, 2, 3), unbiased=False).add(norm.eps).sqrt()
    torch.testing.assert_close(inverse_deviation, (1 / deviation).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", sorted(native.ESTIMATORS))
def test_gradients_through_the_sign_and_the_normalization(estimator, dtype):
    x, grad = make_map(size=(4, 19, 23)), make_map(dtype, size=(4, 19, 23))
    gamma, beta = torch.randn(CHANNELS), torch.randn(CHANNELS)
    running = torch.zeros(CHANNELS), torch.ones(CHANNELS)
    mean, inverse_deviation, slope, shift = native.fold(x, gamma, beta, running, momentum=0.1, eps=1e-5)
    found = native.norm_sign_backward(
        grad,
        x,
        slope=slope,
        shift=shift,
        mean=mean,
        inverse_deviation=inverse_deviation,
        gamma=gamma,
        estimator=estimator,
    )
    leaves = [value.double().requires_grad_() for value in (x, gamma, beta)]
    normalized = F.batch_norm(leaves[0], None, None, leaves[1], leaves[2], training=True)
    ESTIMATORS[estimator](normalized).backward(grad.double())
    for value, leaf in zip(found, leaves, strict=True):
        assert leaf.grad is not None
        expected = leaf.grad.float()
        torch.testing.assert_close(value, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("magnitude", [False, True])
def test_spatial_factors_and_their_gradients(magnitude):
    x, grad = make_map(), make_map()
    x[0, :, 0, 0] = 0  # a magnitude's gradient there is 0
    leaves = [x.double().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)]
    mean = (leaves[0].abs() if magnitude else leaves[0]).mean(dim=1, keepdim=True)
    expected = leaves[0] * (0.5 + leaves[1] * mean)
    expected.backward(grad.double())
    out = native.weigh(x, 0.7, offset=0.5, magnitude=magnitude)
    torch.testing.assert_close(out, expected.detach().float(), rtol=1e-5, atol=1e-5)
    grad_x, grad_scale = native.weigh_backward(grad, x, 0.7, offset=0.5, magnitude=magnitude)
    torch.testing.assert_close(grad_x, leaves[0].grad.float(), rtol=1e-5, atol=1e-5)
    assert grad_scale == pytest.approx(float(leaves[1].grad), rel=1e-5, abs=1e-3)


def test_parameters_that_the_library_does_not_take_are_left_to_torch():
    """C code would read beyond their ends, or their bits as those of another type."""
    rows = torch.zeros(CHANNELS), torch.ones(2 * CHANNELS)[::2]
    assert native.takes(CHANNELS, rows[0])
    for wrong in (rows[1], rows[0].double(), torch.zeros(CHANNELS + 1), torch.zeros(CHANNELS, device="meta")):
        assert not native.takes(CHANNELS, rows[0], wrong)
    conv, x = BinaryConv2d(in_channels=CHANNELS, out_channels=16).train(), make_map(channels=CHANNELS + 16)
    with pytest.raises(RuntimeError, match="48"):
        conv(x)
    with pytest.raises(ValueError, match="more than one value"):
        conv(make_map(size=(0, 5, 5)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_buffers_do_not_follow_the_default_type(dtype):
    block = shaken(HPBBlock(num_feat=16), torch.channels_last, torch.float32)
    x = example(torch.channels_last, torch.float32, 16, (2, 9, 11))
    expected = trained_once(block, x, True)
    torch.set_default_dtype(dtype)
    try:
        found = trained_once(block, x, True)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in expected.items():
        if name != "output" and "grad" in name:
            scale = float(value.abs().max())
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("binarizer", ["bam", "dorefa", "xnor"])
def test_convolutions_take_them_and_keep_their_results(binarizer, monkeypatch):
    calls = []
    for name in ("fold", "signs", "scaled", "norm_sign_backward"):
        original = getattr(native, name)
        monkeypatch.setattr(
            native, name, lambda *args, _f=original, _n=name, **options: (calls.append(_n), _f(*args, **options))[1]
        )
    conv = BinaryConv2d(in_channels=48, out_channels=16, weight_binarizer=binarizer, output_scale="channel")
    conv, x = (
        shaken(conv, torch.channels_last, torch.float32),
        example(torch.channels_last, torch.float32, 48, (2, 9, 11)),
    )
    with native.switched(False):
        without = trained_once(conv, x, True)
        assert not calls
    assert_same(without, trained_once(conv, x, True), 2e-5)
    assert set(calls) == {"fold", "signs", "scaled", "norm_sign_backward"}


@pytest.mark.parametrize("autocast", [False, True])
def test_blocks_with_them_equal_blocks_without(autocast):
    block = shaken(HPBBlock(num_feat=32, conv_options={"output_scale": "channel"}), torch.channels_last, torch.float32)
    x = example(torch.channels_last, torch.float32, 32, (2, 9, 11))
    with native.switched(False):
        without = trained_once(block, x, True, autocast)
    found = trained_once(block, x, True, autocast)
    # With bfloat16 a gradient that is rounded elsewhere may round to its neighbour.
    assert_same(without, found, 1e-2 if autocast else 1e-4)
    again = trained_once(block, x, True, autocast)
    assert all(torch.equal(value, again[name]) for name, value in found.items())


def test_the_fast_path_needs_them_no_more_than_a_compiler():
    with native.switched(False), fused.switched(True):
        conv = BinaryConv2d(in_channels=16, out_channels=16)
        assert conv.train()(make_map(channels=16)).shape == (3, 16, 7, 5)
