"""The average of the weights, and its running statistics: of its own, or copies of the trained network's.

It computes other activations than the trained weights, whose running statistics it gets with
`copy`; and a binary network takes its thresholds from them. With `reestimate` its batch normalizations look at a
training batch now and then, as those of the trained network do. The batch is the one that is trained on, and the
statistics are saved with the average: no data is drawn for it, nothing random happens, and a resume stays exact.
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
    """Set average <- decay average + (1 - decay) net for all parameters, latent weights included; buffers are copied.

    `own`: ids of the buffers of `average` that are left alone.
    """
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for mine, value in zip(average.buffers(), net.buffers(), strict=True):
        if id(mine) not in own:
            mine.copy_(value)


class AverageStatistics:
    """The running statistics of the averaged network `ema`; `own` are the ids of the buffers that are not copied.

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
        """Let the normalizations see the batch `lq` (N, C, H, W) where it is their turn; in float32."""
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
