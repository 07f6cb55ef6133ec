"""Binarized: any registered network with binary convolutions put in, without a line of its code changed ("mixing").

network_g:
  type: Binarized
  host: {type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 4}
  recipe: {binarizer: bam, exclude: ['upsample*'], group: parent, keep_first_last: true}
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.nn.mixing.recipe import Recipe, SwapError, as_recipe
from bam_plugin.nn.mixing.report import SwapReport
from bam_plugin.nn.mixing.swap import binarize
from bam_plugin.nn.mixing.watching import WatchError
from bam_plugin.toolbox.networks import CHANNEL_OPTIONS, build_network, input_channels

# What the video networks of BasicSR need at least, for their windows of frames and their optical flow.
VIDEO_FRAMES, VIDEO_SIZE = 7, 64


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
        probe_frames: number of frames of the example, where the host takes videos (N, T, C, H, W). None is the host's
            option `num_frame`; a host without one is watched on a picture and, if it refuses that, on 7 frames, of
            probe_size and then of 64 pixels.
    """

    def __init__(
        self,
        *,
        host: Mapping[str, Any],
        recipe: Mapping[str, Any] | None = None,
        probe_size: int = 24,
        probe_frames: int | None = None,
    ) -> None:
        super().__init__()
        options = dict(host)
        if "type" not in options:
            raise SwapError(f"host needs the key 'type', a registered network, found {sorted(options)}")
        # A wrong recipe is reported before a large network is built.
        checked = as_recipe(recipe)
        network = build_network(options)
        self.report = _binarize(network, checked, _example_shapes(network, options, probe_size, probe_frames))
        self.host = network
        # Only messages: BasicSR's logger, if it is in use, has its handlers by now.
        logging.getLogger("basicsr").info("%s in %s:\n%s", checked.binarizer, type(network).__name__, self.report)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, x: Tensor) -> Tensor:
        """The host's forward."""
        return self.host(x)


def _example_shapes(
    network: nn.Module, options: Mapping[str, Any], size: int, frames: int | None
) -> list[tuple[int, ...]]:
    """Shapes of examples to try in turn, see Binarized."""
    # The first convolution of a video network may belong to its optical flow: it does not tell the channels.
    channels = input_channels(network, options if set(CHANNEL_OPTIONS) & set(options) else {"num_in_ch": 3})
    if frames is None and "num_frame" in (known := inspect.signature(type(network)).parameters):
        frames = options.get("num_frame", known["num_frame"].default)
    videos = [(2, frames or VIDEO_FRAMES, channels, each, each) for each in dict.fromkeys((size, VIDEO_SIZE))]
    return videos if frames else [(2, input_channels(network, options), size, size), *videos]


def _binarize(network: nn.Module, recipe: Recipe, shapes: Sequence[tuple[int, ...]]) -> SwapReport:
    """Binarize by the first of the example `shapes` on which the network runs."""
    refused = []
    for shape in shapes:
        try:
            return binarize(network, recipe, example=torch.rand(shape))
        except WatchError as error:
            refused.append(str(error))
    raise WatchError(
        f"set probe_size, and probe_frames for a host that takes videos, to an example that fits: {'; '.join(refused)}"
    )


def _add_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Accept the state of a bare host: put `host.` before its names."""
    own = f"{prefix}host."
    names = [name for name in state_dict if name.startswith(prefix)]
    if not any(name.startswith(own) for name in names):
        for name in names:
            state_dict[own + name[len(prefix) :]] = state_dict.pop(name)
