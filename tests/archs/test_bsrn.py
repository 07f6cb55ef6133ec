"""BSRN: parameter counts, sizes and options."""

import pytest
import torch

from bam_plugin.archs.bsrn_arch import BSRN, LITERAL
from bam_plugin.config import read_options
from bam_plugin.config.shipped import options_folder


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(2)
    torch.set_num_threads(1)


def test_literal_network_has_the_listed_parameters():
    channels = 48
    head = 3 * channels * 9 + channels
    lb_block = channels**2 * 9 + 2 * channels**2 + 3 * 2 * channels + 2  # 3x3, two 1x1, three BN, two s
    body_end = channels**2 * 9 + channels
    upsampler = 2 * (channels * 4 * channels * 9 + 4 * channels) + channels * 3 * 9 + 3
    network = BSRN(upscale=4, **LITERAL)
    assert parameters(network) == head + 40 * lb_block + body_end + upsampler == 1_215_059


def test_the_option_files_method_literal_is_the_literal_network():
    values = read_options(options_folder() / "train/BSRN/train_BSRN_x4.yml", method="literal").values["network_g"]
    literal = {key: list(value) if isinstance(value, tuple) else value for key, value in LITERAL.items()}
    size = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 48, "num_hpb": 20, "num_lb": 2, "upscale": 4}
    assert values == {"type": "BSRN", **size, **literal}
    assert parameters(BSRN(**{key: value for key, value in values.items() if key != "type"})) == 1_215_059


def test_default_network_adds_one_factor_per_binary_output_channel():
    assert parameters(BSRN(upscale=4)) == 1_215_059 + 40 * 3 * 48


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
def test_output_size(upscale, upsampler):
    network = BSRN(num_feat=8, num_hpb=1, upscale=upscale, upsampler=upsampler)
    assert network(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5 * upscale, 7 * upscale)


def test_literal_options_reach_the_blocks():
    block = BSRN(num_feat=8, num_hpb=1, **LITERAL).body[0].blocks[0]
    assert not block.identity and block.conv3.output_scale is None
    assert [(beta.offset, beta.scale.item()) for beta in (block.beta1, block.beta2)] == [(0.0, 1.0), (0.0, 1.0)]


def test_bad_options_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"bilinear.*found 'nearest'"):
        BSRN(global_skip="nearest")
    with pytest.raises(ValueError, match=r"num_in_ch \(3\) and num_out_ch \(1\)"):
        BSRN(num_out_ch=1)
    with pytest.raises(ValueError, match=r"pixelshuffledirect.*found 'x'"):
        BSRN(num_hpb=1, upsampler="x")
    with pytest.raises(ValueError, match=r"upscale.*found 5"):
        BSRN(num_hpb=1, upscale=5)


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("W2", {"long_range": False, "short_range": False}),
        ("solved", {"alpha": "solved"}),
        ("A1", {"beta": "one", "beta_offset": [0.5, 1]}),
        ("A2", {"accumulate_activations": False}),
        ("accumulated", {"weight_gradient": "accumulated"}),
        ("mean", {"beta_statistic": "mean"}),
    ],
)
def test_ablations_are_options_that_change_the_network(row, options):
    """The rows of docs/networks.md build from values as YAML has them, and each computes something else."""

    def run(**options):
        torch.manual_seed(4)
        # At their start of 0 the trained factors b do nothing yet.
        network = BSRN(num_feat=8, num_hpb=1, upscale=2, beta_init=[1, 1], **options)
        x = torch.rand(2, 3, 8, 8)
        result = network(x)
        result.square().mean().backward()
        gradient = network.body[0].blocks[0].conv3.weight.grad
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
        return result.detach(), gradient

    result, gradient = run(**options)
    plain, plain_gradient = run()
    if row == "accumulated":
        assert torch.equal(result, plain) and not torch.equal(gradient, plain_gradient)
    else:
        assert not torch.equal(result, plain)
