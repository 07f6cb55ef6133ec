"""Walks the registered networks: each with each binarizer at each scale trains, saves, loads and repeats itself."""

import copy

import pytest
import torch

# The registry comes through this package: `import basicsr` alone fails beside a current torchvision.
from helpers.networks import SMALL_ARCHS

from bam_plugin.archs.bsrn_arch import ARCH_REGISTRY
from bam_plugin.nn import METHODS, BinaryConv2d

# Binarized and PackedNetwork have their own tests.
OTHERS = {"Bicubic", "Binarized", "PackedNetwork"}

OURS = sorted(name for name, arch in ARCH_REGISTRY if arch.__module__.startswith("bam_plugin.archs."))
# Full precision is a method of the two networks that have a full-precision original.
FLOAT = ("SRResNet", "VDSR")
CASES = [(name, method) for name in SMALL_ARCHS for method in [*METHODS, *([None] if name in FLOAT else [])]]


def build(name, method, **options):
    torch.manual_seed(3)
    torch.set_num_threads(1)
    return ARCH_REGISTRY.get(name)(**{**SMALL_ARCHS[name], "binarizer": method, **options})


def latents(network):
    return {f"{n}.weight": m.weight for n, m in network.named_modules() if isinstance(m, BinaryConv2d)}


def test_every_network_is_walked():
    assert set(SMALL_ARCHS) | OTHERS == set(OURS)


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize(("name", "method"), CASES)
def test_training_step_reaches_every_latent_weight(name, method, upscale):
    network = build(name, method, upscale=upscale)
    x = torch.rand(2, 3, 8, 8)
    result = network(x)
    assert result.shape == (2, 3, 8 * upscale, 8 * upscale)
    (result - torch.rand_like(result)).abs().mean().backward()
    assert bool(latents(network)) is (method is not None)
    for key, value in network.named_parameters():
        assert value.grad is not None and torch.isfinite(value.grad).all(), key
    for key, value in latents(network).items():
        assert value.grad.abs().sum() > 0, key


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize(("name", "method"), CASES)
def test_state_dict_round_trip_and_deterministic_evaluation(name, method, upscale, tmp_path):
    network = build(name, method, upscale=upscale)
    with torch.no_grad():
        for _ in range(2):  # move the running statistics away from their initial values
            network(torch.rand(2, 3, 8, 8))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    other = build(name, method, upscale=upscale)
    for value in other.parameters():
        torch.nn.init.normal_(value)
    other.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    x = torch.rand(1, 3, 9, 10)
    with torch.no_grad():
        expected = network.eval()(x).mul(255).round().clamp(0, 255).byte()
        assert expected.shape == (1, 3, 9 * upscale, 10 * upscale)
        for again in (network, other.eval(), copy.deepcopy(network)):
            assert torch.equal(again(x).mul(255).round().clamp(0, 255).byte(), expected)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("BSRN", ["head", "body_end", "upsampler", "tail"]),
        ("SRResNet", ["head", "body_end", "upsampler", "tail"]),
        ("VDSR", ["head", "tail"]),
    ],
)
@pytest.mark.parametrize("method", ["bam", "bbcu"])
def test_every_part_can_be_binarized(name, parts, method):
    network = build(name, method, binary_parts=parts)
    assert not [key for key, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    network(torch.rand(2, 3, 8, 8)).square().mean().backward()
    for key, value in latents(network).items():
        assert torch.isfinite(value.grad).all() and value.grad.abs().sum() > 0, key
    with pytest.raises(ValueError, match=r"binary_parts.*found \['neck'\]"):
        build(name, method, binary_parts=["neck"])


@pytest.mark.parametrize("name", ["SRResNet", "VDSR"])
@pytest.mark.parametrize("method", ["bam", "bnn"])
def test_activations_can_stay_full_precision(name, method):
    """Table 5: the weights' side alone; the network is then not a function of signs and keeps its rectifiers."""
    network = build(name, method, activation_binarizer="float")
    x = torch.rand(2, 3, 8, 8)
    network(x).square().mean().backward()
    assert all(value.grad.abs().sum() > 0 for value in latents(network).values())
    network.eval()
    conv = next(module for module in network.modules() if isinstance(module, BinaryConv2d))
    small, large = torch.rand(1, 8, 6, 6), torch.rand(1, 8, 6, 6) + 5
    assert not torch.equal(conv(small), conv(large))


def test_bsrn_refuses_full_precision_activations():
    with pytest.raises(ValueError, match="without a nonlinearity"):
        build("BSRN", "bam", activation_binarizer="float")


def test_a_side_can_be_replaced_alone():
    network = build("SRResNet", "bam", weight_binarizer="abc", weight_options={"bases": 2})
    conv = next(module for module in network.modules() if isinstance(module, BinaryConv2d))
    assert len(conv.decompose()) == 2
    assert type(conv.binarize_activation).__name__ == "BatchNormSign"
