"""A new activation binarizer is one class: nothing else is needed to train, stage, profile, convert and verify it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bam_plugin.archs.srresnet_arch import SRResNet
from bam_plugin.config.binarizers import check_binarizers
from bam_plugin.conversion.converter import convert_network
from bam_plugin.conversion.profiling import profile
from bam_plugin.mixed.torch_module import pack_network
from bam_plugin.models.training_stages import StagedTraining
from bam_plugin.nn import ACTIVATION_BINARIZERS, BinaryConv2d
from bam_plugin.nn.activations import ActivationBinarizer
from bam_plugin.nn.binary_conv import binary_convs
from bam_plugin.nn.weights import straight_through
from bam_plugin.packed.errors import ConversionError

OPTIONS = {"binarizer": "bnn", "activation_binarizer": "two_steps", "activation_options": {"distance": 0.5}}


@pytest.fixture(autouse=True)
def two_steps():
    """The binarizer under its name in the table, as long as a test runs."""

    class TwoSteps(ActivationBinarizer, name="two_steps"):
        """A^B = Sign(g A - t) + f Sign(g A - t - d)   (no paper: a gain, a threshold and a second step)."""

        bases = 2

        def __init__(self, *, num_feat: int, distance: float = 1.0) -> None:
            super().__init__(num_feat=num_feat)
            self.distance = distance
            self.gain = nn.Parameter(torch.linspace(-1, 2, num_feat).view(-1, 1, 1))
            self.threshold = nn.Parameter(torch.linspace(-0.1, 0.1, num_feat).view(-1, 1, 1))
            self.factor = nn.Parameter(torch.tensor(0.5))

        def value(self, x: Tensor) -> Tensor:
            return x * self.gain - self.threshold

        def affine(self) -> tuple[Tensor, Tensor]:
            return self.gain.detach().view(-1), -self.threshold.detach().view(-1)

        def maps(self, value: Tensor) -> list[tuple[Tensor, Tensor | None]]:
            second = value - self.distance
            return [
                (straight_through((each >= 0).to(each.dtype) * 2 - 1, each), factor)
                for each, factor in ((value, None), (second, self.factor))
            ]

        def relaxed(self, value: Tensor) -> Tensor:
            return value + self.factor * (value - self.distance)

    yield TwoSteps
    del ACTIVATION_BINARIZERS["two_steps"]


def make_network() -> SRResNet:
    torch.manual_seed(3)
    return SRResNet(num_feat=8, num_block=2, upscale=2, **OPTIONS)


def train(network: nn.Module, iterations: int = 3) -> None:
    """A few iterations on noise, after which every parameter of the binarizers has moved."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(iterations):
        optimizer.zero_grad()
        network(torch.rand(2, 3, 8, 8)).sub(0.5).abs().mean().backward()
        optimizer.step()


def test_it_trains_and_evaluates_alike(two_steps):
    network = make_network()
    before = {name: value.clone() for name, value in network.named_parameters() if "binarize_activation" in name}
    assert len(before) == 4 * 3
    train(network)
    assert all(not torch.equal(value, before[name]) for name, value in network.named_parameters() if name in before)
    conv = next(iter(binary_convs(network).values()))
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(conv.train()(x), conv.eval()(x))


def test_options_are_checked_by_its_constructor():
    assert not list(check_binarizers(OPTIONS, SRResNet, ("network_g",)))
    wrong = {**OPTIONS, "activation_options": {"distanse": 0.5}}
    (problem,) = check_binarizers(wrong, SRResNet, ("network_g",))
    assert problem.key == ("network_g", "activation_options", "distanse") and "distance" in problem.message
    (problem,) = check_binarizers({**OPTIONS, "activation_binarizer": "two_step"}, SRResNet, ("network_g",))
    assert "two_steps" in problem.message


def test_stages_take_its_full_precision_counterpart():
    network = make_network()
    stages = StagedTraining(lengths={"float": 1, "binary_activations": 1}, networks=[network])
    conv: BinaryConv2d = next(iter(binary_convs(network).values()))
    x = torch.randn(1, 8, 4, 4)
    for iteration in (1, 2, 3):
        stages.enter(iteration)
        binarizer = conv.binarize_activation
        activation = binarizer.relaxed(binarizer.value(x)) if iteration == 1 else binarizer(x)
        weight = conv.weight if iteration < 3 else conv.binarize_weight(conv.weight)
        torch.testing.assert_close(conv(x), nn.functional.conv2d(activation, weight, padding=1))
        train(network, 1)


def test_the_profile_counts_its_bases():
    layers = {layer.name: layer for layer in profile(make_network(), output_size=(64, 64)).layers}
    body = layers["body.0.body.layers.0.conv"]
    assert body.base_pairs == 2
    assert body.binary_macs == 2 * 8 * 8 * 9 * 32 * 32
    assert body.float_params == 8 + 8 + 1


def test_a_packed_graph_and_a_packed_module_compute_the_same():
    network = make_network()
    train(network)
    conversion = convert_network(network)
    assert conversion.comparison is not None
    assert conversion.comparison.flipped == 0 and conversion.comparison.signs > 0
    assert conversion.comparison.same_signs.equal_share > 0.999
    x = torch.rand(1, 3, 9, 7)
    packed = pack_network(network.eval(), x)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), network(x), rtol=1e-5, atol=1e-6)


def test_a_map_that_is_no_step_function_is_refused(two_steps, monkeypatch):
    def band(self, value: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        return [((value.abs() < 1).to(value.dtype) * 2 - 1, None)]

    monkeypatch.setattr(two_steps, "maps", band)
    with pytest.raises(ConversionError, match=r"body\.0.*no step function"):
        convert_network(make_network())


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'two_steps' already"):

        class Again(ActivationBinarizer, name="two_steps"):
            pass
