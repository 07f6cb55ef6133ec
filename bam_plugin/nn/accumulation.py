"""Bit accumulation (BAM): the n-th binary convolution of a group builds on the n - 1 before it.

    weights (eq. 3):      W_n^B = Sign(BN(a_1 W_1 + ... + a_n W_n)) * E|W_n|
    activations (eq. 9):  A_n^B = Sign(BN(b_1 A_1 + ... + b_n A_n)),   b_n = s_n * E(A_n)   (eq. 10)

The caller passes the latent weights W_1 .. W_{n-1} of a group to the n-th convolution, as a tuple of tensors. So
nothing is stored between calls, and a block can be checkpointed, replicated or compiled like any stateless module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bam_plugin.nn.fast import fused

WEIGHT_NORM_EPS = 1e-5


def normalize_filters(weight: Tensor, eps: float = WEIGHT_NORM_EPS) -> Tensor:
    """BN on weights: zero mean and unit variance per output filter, over (I, kh, kw).

    `weight` is (O, I, kh, kw). The variance is the biased one of the current weights. There are no running statistics.
    """
    mean = weight.mean(dim=(1, 2, 3), keepdim=True)
    variance = weight.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
    return (weight - mean) * torch.rsqrt(variance + eps)


def accumulate_filters(latent: Tensor, previous: Sequence[Tensor], alpha: Tensor | None) -> Tensor:
    """a_1 W_1 + ... + a_n W_n with W_n = `latent`, `previous` = (W_1, ..., W_{n-1}), all (O, I, kh, kw).

    `alpha` has n elements. None stands for ones (the paper's W1). The sum runs from W_1 to W_n.
    """
    filters = (*previous, latent)
    if alpha is None:
        total = filters[0]
        for current in filters[1:]:
            total = total + current
        return total
    if alpha.numel() != len(filters):
        raise ValueError(
            f"alpha has {alpha.numel()} elements, but the accumulation group holds {len(filters)} filters at this "
            "position; construct the convolution with the matching `group_index`"
        )
    total = alpha[0] * filters[0]
    for index, current in enumerate(filters[1:], start=1):
        total = total + alpha[index] * current
    return total


class ActivationScale(nn.Module):
    """b_n of eq. 10: the factor that weighs one activation A_n (N, C, H, W) in the accumulation.

        mode `one`:      b = offset                                  (no parameter; the paper's A1 with offset 1)
        mode `scalar`:   b = offset + s                              (one trained scalar; eq. 10 without its map)
        mode `spatial`:  b = offset + s * E(A), a map (N, 1, H, W)   (one trained scalar; eq. 10 with offset 0)

    offset None is eq. 10: 0, or 1 with the mode `one`. E is the statistic of A over the channels of each pixel, `mean`
    or `mean_abs` (the paper does not say which). A fixed `offset` other than 0 anchors b. With s = 0 at the start the
    accumulation is a plain sum with the factor `offset`, which trains, and the training learns the spatial part as a
    correction.
    """

    MODES = ("one", "scalar", "spatial")
    STATISTICS = ("mean", "mean_abs")

    def __init__(
        self, *, mode: str = "spatial", statistic: str = "mean_abs", init: float = 1.0, offset: float | None = None
    ) -> None:
        super().__init__()
        if mode not in self.MODES:
            raise ValueError(f"beta mode must be one of {self.MODES}, found {mode!r}")
        if statistic not in self.STATISTICS:
            raise ValueError(f"beta statistic must be one of {self.STATISTICS}, found {statistic!r}")
        self.mode = mode
        self.statistic = statistic
        self.offset = float(mode == "one") if offset is None else float(offset)
        self.scale = None if mode == "one" else nn.Parameter(torch.tensor(float(init)))

    def forward(self, activation: Tensor) -> Tensor:
        """The product b * `activation`, of the shape of `activation` (N, C, H, W)."""
        if self.mode == "one":
            # A factor of exactly 1 is left out, because it would cost a pass over the map.
            return activation if self.offset == 1.0 else activation * self.offset
        factor = self.scale
        assert factor is not None
        if self.mode == "spatial":
            if self.training and fused.enabled_for(activation):
                return fused.weigh(activation, factor, offset=self.offset, statistic=self.statistic)
            values = activation.abs() if self.statistic == "mean_abs" else activation
            factor = factor * values.mean(dim=1, keepdim=True)
        if self.offset != 0.0:
            factor = factor + self.offset
        return activation * factor

    def extra_repr(self) -> str:
        """The options that `print` shows."""
        return f"mode={self.mode}, statistic={self.statistic}, offset={self.offset}"
