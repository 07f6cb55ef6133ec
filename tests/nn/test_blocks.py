"""LBBlock and HPBBlock against a literal computation of the paper's figure."""

import pytest
import torch
import torch.nn.functional as F

from bam_plugin.nn import HPBBlock, LBBlock

CHANNELS = 6


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(1)
    torch.set_num_threads(1)


def norm_sign(x, norm):
    """Sign(BN(x)) in evaluation, written out."""
    view = (1, -1, 1, 1)
    normalized = (x - norm.running_mean.view(view)) / torch.sqrt(norm.running_var.view(view) + norm.eps)
    return (normalized * norm.weight.view(view) + norm.bias.view(view) >= 0).float() * 2 - 1


def binary_conv(x, conv, *earlier):
    """Eq. 3 and the convolution of its result with Sign(BN(x)), written out with alpha = 1."""
    total = sum(earlier, torch.zeros_like(conv.weight)) + conv.weight
    flat = total.flatten(1)
    normalized = (flat - flat.mean(1, keepdim=True)) / torch.sqrt(flat.var(1, unbiased=False, keepdim=True) + 1e-5)
    magnitude = conv.weight.abs().flatten(1).mean(1)
    weight = ((normalized >= 0).float() * 2 - 1) * magnitude[:, None]
    out = F.conv2d(norm_sign(x, conv.binarize_activation.norm), weight.view_as(conv.weight), padding=conv.padding)
    return out if conv.output_scale is None else out * conv.output_scale.view(1, -1, 1, 1)


def randomize(block):
    """Give every normalization and scale values that are not neutral."""
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    return block.eval()


def block_by_hand(block, x, earlier=()):
    def weighted(a, beta):
        return (beta.scale * a.abs().mean(1, keepdim=True) + beta.offset) * a

    a1 = binary_conv(x, block.conv3, *earlier) + (x if block.identity else 0)
    shared = (block.conv1_a.weight,) if block.short_range else ()
    if block.beta1 is None:
        a2 = binary_conv(a1, block.conv1_a) + (a1 if block.identity else 0)
        return binary_conv(a2, block.conv1_b, *shared) + (a2 if block.identity else 0)
    a2 = binary_conv(a1, block.conv1_a) + weighted(a1, block.beta1)
    return binary_conv(a2, block.conv1_b, *shared) + weighted(a1, block.beta1) + weighted(a2, block.beta2)


LITERAL = {"identity": False, "beta_init": (0.7, 1.3), "beta_offset": (0.0, 0.0)}
A2 = {"accumulate_activations": False, "conv_options": {"output_scale": "channel"}}
TRAINABLE = {"beta_init": (0.2, -0.1), "conv_options": {"output_scale": "channel"}}


@pytest.mark.parametrize(
    "options", [LITERAL, TRAINABLE, {**LITERAL, "short_range": False}, A2, {**A2, "identity": False}]
)
@torch.no_grad()
def test_block_equals_the_figure(options):
    block = randomize(LBBlock(num_feat=CHANNELS, **options))
    x = torch.randn(2, CHANNELS, 7, 5)
    torch.testing.assert_close(block(x), block_by_hand(block, x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_long_range_accumulation_joins_the_3x3_filters_of_one_group():
    group = randomize(HPBBlock(num_feat=CHANNELS, num_lb=3, **LITERAL))
    x = torch.randn(1, CHANNELS, 6, 6)
    expected, earlier = x, []
    for block in group.blocks:
        expected = block_by_hand(block, expected, earlier)
        earlier.append(block.conv3.weight)
    torch.testing.assert_close(group(x), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_long_range_accumulation_can_be_switched_off():
    group = randomize(HPBBlock(num_feat=CHANNELS, num_lb=2, long_range=False, **LITERAL))
    x = torch.randn(1, CHANNELS, 6, 6)
    expected = x
    for block in group.blocks:
        expected = block_by_hand(block, expected)
    torch.testing.assert_close(group(x), expected, rtol=1e-4, atol=1e-4)


def test_learned_alpha_has_one_element_per_accumulated_filter():
    group = HPBBlock(num_feat=CHANNELS, num_lb=3, alpha="learned")
    lengths = [
        tuple(conv.binarize_weight.alpha.numel() for conv in (block.conv3, block.conv1_a, block.conv1_b))
        for block in group.blocks
    ]
    assert lengths == [(1, 1, 2), (2, 1, 2), (3, 1, 2)]


def test_gradient_reaches_earlier_filters_only_when_accumulated():
    for gradient, reached in [("latent", False), ("accumulated", True)]:
        block = LBBlock(num_feat=CHANNELS, position=1, weight_gradient=gradient)
        earlier = torch.randn(CHANNELS, CHANNELS, 3, 3, requires_grad=True)
        block(torch.randn(1, CHANNELS, 5, 5), (earlier,)).sum().backward()
        assert (earlier.grad is not None) is reached
        assert block.conv3.weight.grad.abs().sum() > 0


def test_blocks_keep_nothing_between_calls():
    """The same input gives the same output and no tensor stays behind on a module."""
    group = HPBBlock(num_feat=CHANNELS).eval()
    before = {name: set(vars(module)) for name, module in group.named_modules()}
    x = torch.randn(1, CHANNELS, 5, 5)
    first = group(x)
    group(torch.randn(2, CHANNELS, 8, 8))
    assert torch.equal(first, group(x))
    assert before == {name: set(vars(module)) for name, module in group.named_modules()}
