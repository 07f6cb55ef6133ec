"""PlainBSR: its shape against its parts written out, its options, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from bam_plugin.archs.plainbsr_arch import PlainBSR
from bam_plugin.nn import BinaryConv2d

SMALL = {"num_feat": 8, "num_group": 2, "num_convs": 2, "stem_feat": 4}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(2)
    torch.set_num_threads(1)


def convolutions(network):
    return [module for module in network.modules() if isinstance(module, BinaryConv2d)]


@torch.no_grad()
def test_forward_is_the_sum_of_its_paths():
    network = PlainBSR(upscale=3, num_planes=2, depthwise=True, **SMALL).eval()
    x = torch.rand(1, 3, 7, 6)
    stem = x
    for conv, act in zip(network.stem[::2], network.stem[1::2], strict=True):
        stem = F.prelu(F.conv2d(stem, conv.weight, conv.bias, padding=1), act.weight)
    body = F.conv2d(stem, network.head.weight, network.head.bias, padding=1)
    for part in network.body:
        body = part(body)
    sub_pixels = F.conv2d(body, network.tail.weight, network.tail.bias)
    sub_pixels = sub_pixels + F.conv2d(stem, network.stem_tail.weight, network.stem_tail.bias, padding=1)
    large = F.interpolate(x, scale_factor=3, mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(x), F.pixel_shuffle(sub_pixels, 3) + large)


def test_body_has_the_groups_that_the_options_say():
    network = PlainBSR(num_feat=8, num_group=3, num_convs=2, num_planes=2, depthwise=True, num_stem=2, stem_feat=4)
    assert len(network.body) == 6 and len(convolutions(network)) == 12 and len(network.stem) == 4
    assert len(PlainBSR(**SMALL).body) == 2
    assert len(PlainBSR(**{**SMALL, "num_group": 0}).body) == 0
    assert PlainBSR(head_kernel=1, **SMALL).head.kernel_size == (1, 1)
    assert PlainBSR(tail_kernel=3, **SMALL).tail.kernel_size == (3, 3)


def test_default_network_has_the_counted_parameters():
    stem = (3 * 16 * 9 + 16 + 16) + 2 * (16 * 16 * 9 + 16 + 16)
    layer = 64 * 64 * 9 + 2 * 64 + 64  # latents, normalization, factors
    ends = (16 * 64 * 9 + 64) + (64 * 48 + 48) + (16 * 48 * 9 + 48)
    assert sum(value.numel() for value in PlainBSR().parameters()) == stem + 12 * layer + ends
    depthwise = 64 * 9 + 64 + 64
    more = PlainBSR(num_group=2, depthwise=True)
    assert sum(value.numel() for value in more.parameters()) == stem + 2 * (layer + depthwise) + ends


def test_accumulation_is_an_option():
    plain, bam = PlainBSR(**SMALL), PlainBSR(accumulate_weights=True, accumulate_activations=True, **SMALL)
    assert plain.body[0].betas is None and not plain.body[0].accumulate_weights
    assert [(beta.offset, beta.scale.item()) for beta in bam.body[0].betas] == [(1.0, 0.0)] * 2
    x = torch.rand(1, 3, 6, 6)
    bam.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert not torch.equal(plain.eval()(x), bam.eval()(x))


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"binary_parts.*found \['tail'\]"):
        PlainBSR(binary_parts=["tail"])
    with pytest.raises(ValueError, match="num_stem must be at least 1, found 0"):
        PlainBSR(num_stem=0)
    with pytest.raises(ValueError, match=r"bilinear.*found 'nearest'"):
        PlainBSR(global_skip="nearest")
    with pytest.raises(ValueError, match=r"num_planes 2 .* set skip to true"):
        PlainBSR(num_planes=2, skip=False)
