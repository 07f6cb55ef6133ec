"""VDSR and SRResNet: parameter counts of the full-precision originals, the paper's grouping, refused options."""

import pytest
import torch

from bam_plugin.archs.srresnet_arch import SRResNet
from bam_plugin.archs.vdsr_arch import VDSR
from bam_plugin.nn import BinaryChain, BinaryConv2d


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_full_precision_vdsr_has_the_papers_parameters():
    assert parameters(VDSR()) == (3 * 64 * 9 + 64) + 18 * (64 * 64 * 9 + 64) + (64 * 3 * 9 + 3) == 668_227


def test_full_precision_srresnet_has_the_papers_parameters():
    head_and_tail = 2 * 3 * 64 * 81
    convs, norms = 33 * 64 * 64 * 9, 33 * 2 * 64
    upsampler = 2 * 64 * 256 * 9
    prelus = 1 + 16 + 2
    assert parameters(SRResNet()) == head_and_tail + convs + norms + upsampler + prelus == 1_546_771


def test_bam_groups_are_the_papers():
    """VDSR: 6 blocks of 3 of its 18 middle convolutions; SRResNet: the two of each of its 16 residual blocks."""
    for network, groups, size in ((VDSR(binarizer="bam"), 6, 3), (SRResNet(binarizer="bam"), 16, 2)):
        chains = [module for module in network.modules() if isinstance(module, BinaryChain)]
        assert [len(chain.layers) for chain in chains] == [size] * groups
        assert sum(isinstance(module, BinaryConv2d) for module in network.modules()) == groups * size
        assert all(chain.accumulate_weights and chain.betas is not None for chain in chains)


def test_learned_alpha_fits_the_position_in_the_group():
    network = VDSR(num_feat=4, binarizer="bam", weight_options={"alpha": "learned"})
    lengths = [module.alpha.numel() for module in network.modules() if hasattr(module, "alpha")]
    assert lengths == [1, 2, 3] * 6


@torch.no_grad()
def test_vdsr_starts_close_to_the_interpolation():
    x = torch.rand(1, 3, 8, 8)
    enlarged = torch.nn.functional.interpolate(x, scale_factor=3, mode="bicubic", align_corners=False)
    assert (VDSR(upscale=3)(x) - enlarged).abs().mean() < 0.02


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"multiple of group \(3\), found 17"):
        VDSR(num_layers=19)
    with pytest.raises(ValueError, match="must be equal"):
        VDSR(num_out_ch=1)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), found 8"):
        SRResNet(upscale=8)
    for network in (VDSR, SRResNet):
        with pytest.raises(ValueError, match=r"binarizer must be one of .*'bam'.* found 'xyz'"):
            network(binarizer="xyz")
        with pytest.raises(ValueError, match="needs a binarizer"):
            network(binary_parts=["tail"])
