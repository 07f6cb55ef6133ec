"""Binarized: any registered network with binary convolutions put in, without a line of its code changed ("mixing").

network_g:
  type: Binarized
  host: {type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 4}
  recipe: {binarizer: bam, exclude: ['upsample*'], group: parent, keep_first_last: true}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.nn.mixing.recipe import SwapError, as_recipe
from bam_plugin.nn.mixing.swap import binarize
from bam_plugin.toolbox.networks import build_network, input_channels


@ARCH_REGISTRY.register()
class Binarized(nn.Module):
    """A registered network whose convolutions are binary; the input and output of the host.

    A checkpoint of the full-precision host loads as it is, strictly: its parameter `NAME.weight` becomes
    `host.NAME.conv.weight` where NAME was binarized and `host.NAME.weight` elsewhere, and what only the binary network
    has keeps its start.

    Args:
        host: `type`, a name in ARCH_REGISTRY, and the options of that network.
        recipe: what to binarize and how, see bam_plugin.nn.Recipe.
        probe_size: height and width of the example that the host is watched on.
    """

    def __init__(
        self, *, host: Mapping[str, Any], recipe: Mapping[str, Any] | None = None, probe_size: int = 24
    ) -> None:
        super().__init__()
        options = dict(host)
        if "type" not in options:
            raise SwapError(f"host needs the key 'type', a registered network, found {sorted(options)}")
        # A wrong recipe is reported before a large network is built.
        checked = as_recipe(recipe)
        checked.method()
        network = build_network(options)
        channels = input_channels(network, options)
        self.report = binarize(network, checked, example=torch.rand(2, channels, probe_size, probe_size))
        self.host = network
        # Only messages: BasicSR's logger, if it is in use, has its handlers by now.
        logging.getLogger("basicsr").info("%s in %s:\n%s", checked.binarizer, type(network).__name__, self.report)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, x: Tensor) -> Tensor:
        """The host's forward."""
        return self.host(x)


def _add_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Accept the state of a bare host: put `host.` before its names."""
    own = f"{prefix}host."
    names = [name for name in state_dict if name.startswith(prefix)]
    if not any(name.startswith(own) for name in names):
        for name in names:
            state_dict[own + name[len(prefix) :]] = state_dict.pop(name)
