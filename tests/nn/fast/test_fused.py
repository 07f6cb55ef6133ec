"""The fast path of training against the readable modules: outputs, every gradient, running statistics, saved memory."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from helpers.fast_path import WIDTH, assert_same, example, shaken, trained_once
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from bam_plugin.nn import ActivationScale, BinaryConv2d, HPBBlock, LBBlock, set_progress
from bam_plugin.nn.fast import fused

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(params=sorted(FORMATS))
def memory_format(request):
    return FORMATS[request.param]


@pytest.mark.parametrize("estimator", ["clip", "polynomial", "identity", "ede"])
@pytest.mark.parametrize(
    "geometry",
    [(3, 1, None), (1, 1, None), (3, 2, 0), (1, 2, 1)],
    ids=lambda g: f"kernel{g[0]}-stride{g[1]}-padding{g[2]}",
)
def test_convolution_equals_the_readable_one(memory_format, estimator, geometry):
    kernel_size, stride, padding = geometry
    conv = BinaryConv2d(
        in_channels=WIDTH,
        out_channels=8,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        activation_options={"estimator": estimator},
        output_scale="channel",
    )
    conv, x = shaken(conv, memory_format), example(memory_format)
    for progress in (0.0, 0.7) if set_progress(conv, 0.0) else (0.0,):
        set_progress(conv, progress)
        assert_same(trained_once(conv, x, False), trained_once(conv, x, True), 1e-12)


@pytest.mark.parametrize("output_scale", [None, "scalar"])
@pytest.mark.parametrize("binarizer", ["bam", "bnn", "dorefa", "xnor", "bireal", "react"])
def test_every_weight_binarizer_of_one_base_keeps_its_gradient(binarizer, output_scale):
    conv = BinaryConv2d(in_channels=WIDTH, out_channels=8, weight_binarizer=binarizer, output_scale=output_scale)
    conv, x = shaken(conv), example(torch.channels_last)
    assert_same(trained_once(conv, x, False), trained_once(conv, x, True), 1e-12)


@pytest.mark.parametrize("statistic", ActivationScale.STATISTICS)
@pytest.mark.parametrize(("alpha", "gradient"), [("one", "latent"), ("learned", "accumulated")])
def test_accumulating_blocks_equal_the_readable_ones(memory_format, alpha, gradient, statistic):
    block = HPBBlock(num_feat=WIDTH, alpha=alpha, weight_gradient=gradient, beta_statistic=statistic)
    block, x = shaken(block, memory_format), example(memory_format)
    assert_same(trained_once(block, x, False), trained_once(block, x, True), 1e-11)


# 48: the sums fit bfloat16 (an even number of at most 512 signs); 64: they do not; 5: odd sums up to 45 do.
@pytest.mark.parametrize("channels", [5, 48, 64])
def test_float32_is_as_exact_as_the_readable_convolution(memory_format, channels):
    conv = BinaryConv2d(in_channels=channels, out_channels=16, output_scale="channel")
    conv, x = shaken(conv, memory_format, torch.float32), example(memory_format, torch.float32, channels)
    assert_same(trained_once(conv, x, False), trained_once(conv, x, True), 2e-5)


def test_sums_at_the_limit_of_the_short_type_are_exact():
    conv = BinaryConv2d(in_channels=48, out_channels=4)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.weight[:, ::5] = -0.001
    x = torch.randn(2, 48, 6, 6)
    with torch.no_grad():
        conv.binarize_activation.norm.weight.fill_(1e-3)
        conv.binarize_activation.norm.bias.fill_(1.0)
    # All signs are +1: inside the image each sum is 432 minus twice the negative weights (10 channels of 9 taps).
    magnitude = conv.decompose()[0][1]
    inside = conv.train()(x)[:, :, 1:-1, 1:-1]
    assert torch.equal(inside, (magnitude * (432 - 2 * 90)).view(1, -1, 1, 1).expand_as(inside))


def test_autocast_keeps_the_sums_and_rounds_gradients_only(memory_format):
    block = HPBBlock(num_feat=48, conv_options={"output_scale": "channel"})
    block, x = shaken(block, memory_format, torch.float32), example(memory_format, torch.float32, 48, (2, 12, 12))
    plain, fast = (trained_once(block, x, on, autocast=on) for on in (False, True))
    assert fast["output"].dtype == torch.float32
    for name, value in plain.items():
        difference = (fast[name].double() - value.double()).norm() / value.double().norm()
        assert difference < (1e-2 if name.startswith("grad") else 1e-5), name


def test_bfloat16_input_is_computed_in_float32():
    conv = shaken(BinaryConv2d(in_channels=48, out_channels=8), dtype=torch.float32)
    x = torch.randn(2, 48, 6, 6).bfloat16()
    short = trained_once(conv, x.clone().requires_grad_(), True, autocast=True)
    long = trained_once(conv, x.float().requires_grad_(), True, autocast=True)
    assert torch.equal(short["output"], long["output"])
    assert short["grad x"].dtype == torch.bfloat16


@pytest.mark.parametrize("shift", [0.0, -0.0])
def test_ties_are_plus_one_and_inside_the_window(shift):
    conv = BinaryConv2d(in_channels=WIDTH, out_channels=4)
    norm = conv.binarize_activation.norm
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, -0.0] * (WIDTH // 2)))
        norm.bias.fill_(shift)
    x = example(torch.channels_last, torch.float32)
    plain, fast = trained_once(conv, x, False), trained_once(conv, x, True)
    assert_same(plain, fast, 1e-5)
    # The ends of the clipped window belong to it.
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([1.0, -1.0, 1.0001, -1.0001] * (WIDTH // 4)))
    plain, fast = trained_once(conv, x, False), trained_once(conv, x, True)
    assert_same(plain, fast, 1e-5)
    reached = fast["grad binarize_activation.norm.bias"] != 0
    assert reached.tolist() == [True, True, False, False] * (WIDTH // 4)


@pytest.mark.parametrize("shift", [0.0, -0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_that_underflows_is_a_tie(memory_format, dtype, shift):
    """A batch of mean zero, so small that x * slope is -0.0 for its negative half: the normalized value is zero."""
    conv = BinaryConv2d(in_channels=WIDTH, out_channels=4).to(dtype)
    norm = conv.binarize_activation.norm
    with torch.no_grad():
        norm.weight.fill_(torch.finfo(dtype).tiny)
        norm.bias.fill_(shift)
    x = torch.full((2, WIDTH, 8, 8), 1e-20, dtype=dtype)
    x[:, :, ::2] *= -1
    x = x.contiguous(memory_format=memory_format)
    plain, fast = trained_once(conv, x, False), trained_once(conv, x, True)
    expected = conv.eval()(torch.ones_like(x))  # all signs are +1
    torch.testing.assert_close(plain["output"], expected)
    torch.testing.assert_close(fast["output"], expected)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
def test_zero_has_the_sign_plus_one_whatever_makes_it(short, flush):
    """Products that cancel the shift exactly, but for a bit that underflows, or that are nothing beside it."""
    slope = torch.tensor([1.0, -1.0, 1e-20, 3.0, 1 + 2.0**-23]).repeat(40)
    wanted = torch.tensor([0.0, -0.0, 1e-45, -1e-38, 1e-30, -1e-24, 1.0, -2.0]).repeat_interleave(25)
    shift = fused._never_zero(wanted)
    x = torch.stack(
        [-shift / slope * factor for factor in (1.0, 1 + 2.0**-23, 1 - 2.0**-24)] + [slope * 0, slope * -0.0]
    )
    x = torch.cat([x, torch.full_like(x, -1e-45), torch.full_like(x, 1e-45)])[:, :, None, None].expand(-1, -1, 4, 5)
    torch.set_flush_denormal(flush)
    try:
        normalized = fused._normalize(x.contiguous(), slope, shift)
        assert torch.equal(fused._sign(normalized, short).float(), torch.where(normalized >= 0, 1.0, -1.0))
    finally:
        torch.set_flush_denormal(False)
    assert (normalized == 0).any()


@pytest.mark.parametrize("frozen", ["x", "weight", "norm"])
def test_frozen_parts_get_no_gradient_and_the_others_theirs(frozen):
    conv = shaken(BinaryConv2d(in_channels=WIDTH, out_channels=8, output_scale="channel"))
    x = example(torch.channels_last)
    leaves = {"x": [x], "weight": [conv.weight, conv.output_scale], "norm": conv.binarize_activation.norm.parameters()}
    for leaf in leaves[frozen]:
        leaf.requires_grad_(False)
    assert_same(trained_once(conv, x, False), trained_once(conv, x, True), 1e-12)


def test_cumulative_statistics():
    conv = shaken(BinaryConv2d(in_channels=WIDTH, out_channels=8))
    conv.binarize_activation.norm.momentum = None
    conv.binarize_activation.norm.num_batches_tracked += 3
    x = example(torch.channels_last)
    assert_same(trained_once(conv, x, False), trained_once(conv, x, True), 1e-12)


def test_one_value_per_channel_has_no_statistics():
    conv = BinaryConv2d(in_channels=WIDTH, out_channels=8)
    with pytest.raises(ValueError, match="more than one value per channel"):
        conv.train()(torch.randn(1, WIDTH, 1, 1))


class _Subclass(nn.BatchNorm2d):
    """Computes its statistics in its own way, for all we know."""


def _hook(conv: BinaryConv2d) -> None:
    conv.binarize_activation.norm.register_forward_hook(lambda module, args, output: None)


def _subclass(conv: BinaryConv2d) -> None:
    conv.binarize_activation.norm = _Subclass(WIDTH)


PLAIN = {
    "a hook on the normalization": _hook,
    "another normalization": _subclass,
    "evaluation": lambda conv: conv.eval(),
    "frozen statistics": lambda conv: conv.binarize_activation.norm.eval(),
    "several weight bases": {"weight_binarizer": "abc"},
    "another activation": {"activation_binarizer": "rsign"},
}


@pytest.mark.parametrize("case", sorted(PLAIN))
def test_what_the_fast_path_cannot_do_is_left_to_the_modules(case):
    change = PLAIN[case]
    conv = BinaryConv2d(in_channels=WIDTH, out_channels=8, **(change if isinstance(change, dict) else {})).train()
    x = example(torch.contiguous_format, torch.float32)
    if callable(change):
        assert "BinaryConv" in conv(x).grad_fn.name()
        change(conv)
    assert "BinaryConv" not in conv(x).grad_fn.name()


def test_switch_and_environment_variable(monkeypatch):
    conv, x = BinaryConv2d(in_channels=WIDTH, out_channels=8), example(torch.contiguous_format, torch.float32)
    assert fused.enabled()
    with fused.switched(False):
        assert "BinaryConv" not in conv(x).grad_fn.name()
    assert "BinaryConv" in conv(x).grad_fn.name()
    monkeypatch.setenv("BAM_FUSED", "0")
    spec = importlib.util.spec_from_file_location("another_fused", fused.__file__)
    another = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(another)
    assert not another.enabled()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    block, x = shaken(LBBlock(num_feat=WIDTH)), example(torch.channels_last)

    def recomputed(module, x):
        return checkpoint(module, x, use_reentrant=reentrant)

    assert_same(trained_once(block, x, False, call=recomputed), trained_once(block, x, True, call=recomputed), 1e-12)
    plain, fast = trained_once(block, x, True), trained_once(block, x, True, call=recomputed)
    assert torch.equal(plain["grad x"], fast["grad x"])


def saved_bytes(module: nn.Module, x: Tensor, fast: bool) -> int:
    """Bytes that the graph of one forward pass holds until its backward pass, parameters and `x` left out."""
    kept = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept.add(x.untyped_storage().data_ptr())
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with fused.switched(fast), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = module(x)
    return sum(size for pointer, size in held.items() if pointer not in kept) if out is not None else 0


@pytest.mark.parametrize("estimator", ["clip", "polynomial", "ede"])
def test_only_the_inputs_of_the_normalizations_are_saved(estimator):
    block = HPBBlock(num_feat=WIDTH, conv_options={"activation_options": {"estimator": estimator}}).train()
    x = torch.randn(4, WIDTH, 32, 32, requires_grad=True)
    maps = saved_bytes(block, x, True) / (x.numel() * 4)
    # Of each LB block its input, a1 and a2; that of the first is `x` itself. One channel each for both E(A) and b.
    assert 5 <= maps <= 5 + 8 / WIDTH + 0.3
    assert saved_bytes(block, x, True) < 0.6 * saved_bytes(block, x, False)


def _train_in_two_processes(
    rank: int, meeting: Path, block: nn.Module, halves: list[Tensor], expected: list[Tensor]
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=len(halves))
    network = DistributedDataParallel(block.train())
    network(halves[rank]).square().sum().backward()
    for parameter, value in zip(block.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, value, rtol=1e-10, atol=1e-10)
    torch.distributed.destroy_process_group()


def test_gradients_are_averaged_over_processes(tmp_path):
    block = shaken(HPBBlock(num_feat=4))
    halves = [torch.randn(2, 4, 5, 5, dtype=torch.float64) for _ in range(2)]
    sums = [torch.zeros_like(parameter) for parameter in block.parameters()]
    for half in halves:
        twin = copy.deepcopy(block).train()
        with fused.switched(False):
            twin(half).square().sum().backward()
        for total, parameter in zip(sums, twin.parameters(), strict=True):
            total += parameter.grad / len(halves)
    multiprocessing.spawn(_train_in_two_processes, (tmp_path / "meeting", block, halves, sums), nprocs=2)
