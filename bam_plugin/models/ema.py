"""The average of the weights, and its running statistics: its own, or copies of the trained network's.

A binary network takes its thresholds from the running statistics. With `copy` the average gets those of the trained
weights, although it computes other activations. With `reestimate` its batch normalizations see a training batch now and
then, as those of the trained network do. It is the batch of the training, and the statistics are saved with the
average. So the average draws no data and nothing random, and a resume stays exact.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bam_plugin.errors import BamError

CHOICES = ("copy", "reestimate")


@torch.no_grad()
def move_average(average: nn.Module, net: nn.Module, decay: float, own: Collection[int] = ()) -> None:
    """Set average <- decay average + (1 - decay) net for all parameters, latent weights included, and copy the buffers.

    `own`: ids of the buffers of `average` that are not copied.
    """
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for mine, value in zip(average.buffers(), net.buffers(), strict=True):
        if id(mine) not in own:
            mine.copy_(value)


class AverageStatistics:
    """The running statistics of the averaged network `ema`. `own` has the ids of the buffers that are not copied.

    Args:
        ema: the averaged network, in evaluation mode.
        mode: `copy` or `reestimate`.
        freq: with `reestimate`, iterations between two looks at a batch.
    """

    def __init__(self, *, ema: nn.Module, mode: str, freq: int) -> None:
        if mode not in CHOICES or isinstance(freq, bool) or not isinstance(freq, int) or freq < 1:
            raise BamError(
                f"train.ema_bn must be one of {CHOICES} and train.ema_bn_freq at least 1, found {mode!r} and {freq!r}"
            )
        self._ema = ema
        self._norms = [module for module in ema.modules() if isinstance(module, _BatchNorm)]
        self._freq = freq if mode == "reestimate" else 0
        self.own = {id(buffer) for norm in self._norms for buffer in norm.buffers()} if self._freq else set()

    def update(self, lq: Tensor, iteration: int) -> None:
        """Let the normalizations see the batch `lq` (N, C, H, W) in float32, if it is their turn."""
        if not self._freq or iteration % self._freq:
            return
        for norm in self._norms:
            norm.train()
        try:
            with torch.no_grad():
                self._ema(lq)
        finally:
            for norm in self._norms:
                norm.eval()
