"""Binary layers behind a rectifier of the host: a sign of a map without negative values is +1 everywhere.

A binarizer that normalizes moves the map around zero by itself. The others (`sign`, `rsign`) are blind at the start
and, without a threshold to learn, for good. `find_blind` sees that on the example, `make_leaky` replaces the
rectifiers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.nn.mixing.watching import twin_of

SLOPE = 0.1
"""Of the leaky ReLUs, as E2FIF and BBCU have them."""


def find_blind(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """The binary layers of `module` that see no negative value of `inputs`, and the nn.ReLU in front of each.

    The layers by their paths; "" where no nn.ReLU made the map. The module stays as it is.
    """
    twin = twin_of(module).train()
    rectified: dict[int, tuple[str, Tensor]] = {}  # with the tensors, so that no other takes their identity
    blind: dict[str, str] = {}

    def note(name: str, _part: nn.Module, _args: Any, output: Tensor) -> None:
        rectified[id(output)] = (name, output)

    def look(name: str, _part: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].amin() >= 0:
            blind[name.rpartition(".")[0]] = rectified.get(id(args[0]), ("", None))[0]

    for name, part in twin.named_modules():
        if isinstance(part, nn.ReLU):
            part.register_forward_hook(functools.partial(note, name))
        elif isinstance(part, BinaryConv2d):
            part.register_forward_pre_hook(functools.partial(look, name))
    devices = [inputs[0].device.index or 0] if inputs[0].is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        twin(*inputs)
    return blind


def make_leaky(module: nn.Module, names: set[str]) -> None:
    """Replace the nn.ReLU modules of these names by leaky ones, in place."""
    for name in names:
        rectifier = module.get_submodule(name)
        parent, _, child = name.rpartition(".")
        leaky = nn.LeakyReLU(SLOPE, inplace=bool(getattr(rectifier, "inplace", False)))
        setattr(module.get_submodule(parent), child, leaky.train(rectifier.training))
