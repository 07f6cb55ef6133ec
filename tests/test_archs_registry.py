"""Walks the registered networks of this package: each at each scale trains, saves, loads and repeats itself."""

import copy

import pytest
import torch

# The registry comes through this package: `import basicsr` alone fails beside a current torchvision.
from bam_plugin.archs.bsrn_arch import ARCH_REGISTRY
from bam_plugin.nn import BinaryConv2d

# Options that make each network small; every registered network needs a row.
SMALL = {"BSRN": {"num_feat": 8, "num_hpb": 2}}

OURS = sorted(name for name, arch in ARCH_REGISTRY if arch.__module__.startswith("bam_plugin.archs."))


def build(name, **options):
    torch.manual_seed(3)
    torch.set_num_threads(1)
    return ARCH_REGISTRY.get(name)(**{**SMALL[name], **options})


def test_every_network_is_walked():
    assert set(SMALL) == set(OURS)


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize("name", OURS)
def test_training_step_reaches_every_latent_weight(name, upscale):
    network = build(name, upscale=upscale)
    x = torch.rand(2, 3, 8, 8)
    result = network(x)
    assert result.shape == (2, 3, 8 * upscale, 8 * upscale)
    (result - torch.rand_like(result)).abs().mean().backward()
    latents = {f"{n}.weight": m.weight for n, m in network.named_modules() if isinstance(m, BinaryConv2d)}
    assert latents
    for key, value in {**dict(network.named_parameters()), **latents}.items():
        assert value.grad is not None and torch.isfinite(value.grad).all(), key
    for key, value in latents.items():
        assert value.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", OURS)
def test_state_dict_round_trip_and_deterministic_evaluation(name, tmp_path):
    network = build(name)
    with torch.no_grad():
        for _ in range(2):  # move the running statistics away from their initial values
            network(torch.rand(2, 3, 8, 8))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    other = build(name)
    for value in other.parameters():
        torch.nn.init.normal_(value)
    other.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    x = torch.rand(1, 3, 9, 10)
    with torch.no_grad():
        expected = network.eval()(x)
        for again in (network, other.eval(), copy.deepcopy(network)):
            result = again(x)
            assert torch.equal(result, expected)
            assert torch.equal(result.mul(255).round(), expected.mul(255).round())
