"""Binary layers behind a rectifier of the host: the table names them, and the recipe opens their eyes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import HOSTS
from torch import Tensor, nn

from bam_plugin.archs.binarized_arch import Binarized
from bam_plugin.nn import BinaryConv2d, binarize
from bam_plugin.nn.mixing.recipe import SwapError

EXAMPLE = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(4))
EDSR = {"type": "EDSR", **HOSTS["EDSR"][0]}


def blind(network: nn.Module) -> list[str]:
    """Paths of the binary convolutions that give the same bit everywhere."""
    found: list[str] = []

    def look(conv: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor, name: str) -> None:
        bits = conv.binarize_activation(inputs[0])
        if bits.amin() == bits.amax():
            found.append(name)

    for name, part in network.named_modules():
        if isinstance(part, BinaryConv2d):
            part.register_forward_hook(lambda conv, inputs, output, name=name: look(conv, inputs, output, name))
    with torch.no_grad():
        network(EXAMPLE)
    return found


@pytest.mark.parametrize("method", ["bireal", "react", "e2fif", "bbcu"])
def test_edsr_is_blind_behind_its_relus_unless_they_are_leaky(method):
    torch.manual_seed(5)
    network = Binarized(host=EDSR, recipe={"binarizer": method, "include": ["body.*"]})
    assert blind(network) == [f"host.body.{block}.conv2.conv" for block in range(2)]
    assert "body.1.conv2" in str(network.report) and "blind behind body.1.relu" in str(network.report)
    network = Binarized(host=EDSR, recipe={"binarizer": method, "include": ["body.*"], "rectifiers": "leaky"})
    assert not blind(network)
    assert str(network.report).count("is leaky now") == 2
    assert isinstance(network.host.body[0].relu, nn.LeakyReLU) and network.host.body[0].relu.inplace


def test_a_binarizer_that_normalizes_keeps_the_rectifiers():
    network = Binarized(host=EDSR, recipe={"binarizer": "bam", "include": ["body.*"], "rectifiers": "leaky"})
    assert type(network.host.body[0].relu) is nn.ReLU and "leaky" not in str(network.report)


def test_a_rectifier_that_is_no_module_is_named_too():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x):
            return self.last(self.inner(F.relu(self.first(x))))

    report = binarize(Host(), {"binarizer": "react", "rectifiers": "leaky"}, example=EXAMPLE)
    assert "inner" in report.binarized and "blind: it sees no negative value" in str(report)


def test_wrong_choices_are_refused():
    with pytest.raises(SwapError, match="'keep' or 'leaky'"):
        binarize(nn.Sequential(nn.Conv2d(3, 3, 3)), {"rectifiers": "prelu"})


def test_an_example_of_several_inputs_is_watched_too():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.act = nn.ReLU()

        def forward(self, x, y):
            return self.last(self.inner(self.act(self.first(x + y))))

    report = binarize(Host(), {"binarizer": "react"}, example=(EXAMPLE, EXAMPLE))
    assert "blind behind act" in str(report)
