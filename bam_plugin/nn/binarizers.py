"""Weight and activation binarizers, one table for each side.

A weight binarizer is a module with two views of the same binary weight:
- `forward(latent, previous)` -> the effective weight (O, I, kh, kw) with the binarizer's gradient, for training;
- `decompose(latent, previous)` -> a list of (signs, scale) pairs without gradient, for evaluation and packing: signs
  (O, I, kh, kw) in {-1, +1}, scale (O,). The effective weight is the sum over the pairs of scale * signs.
`previous` are the latent weights of the earlier convolutions of the accumulation group (see `accumulation.py`).

An activation binarizer is a module that maps (N, C, H, W) to its alphabet, {-1, +1} unless its `alphabet` says
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bam_plugin.nn.accumulation import accumulate_filters, normalize_filters
from bam_plugin.nn.sign import ESTIMATORS, sign


def mean_magnitude(weight: Tensor) -> Tensor:
    """E|W| per output filter: (O, I, kh, kw) -> (O,)."""
    return weight.abs().mean(dim=(1, 2, 3))


def straight_through(value: Tensor, carrier: Tensor) -> Tensor:
    """`value` in the forward pass, the gradient of `carrier` in the backward pass (both of one shape)."""
    # carrier - carrier.detach() is exactly zero, so the forward value is not rounded.
    return value.detach() + (carrier - carrier.detach())


class BAMWeight(nn.Module):
    """Bit-accumulated weights: W_n^B = Sign(BN(a_1 W_1 + ... + a_n W_n)) * E|W_n|   (eq. 3 of Xin et al., ECCV 2020).

    Gradient, `latent` (eq. 8):  dL/dW_n = dL/dW_n^B, nothing to the earlier latents.
    Gradient, `accumulated`:     dL/d(a_i W_i) = dL/dW_n^B for i = 1 .. n (the estimator of the accumulated sum).
    Learned alpha gets dL/da_i = sum(dL/dW_n^B * W_i) in both cases.
    Tie rule Sign(0) = +1. Scale per output filter, not differentiated.

    alpha: `one` (the paper's W1) or `learned` (n scalars, 1 at the start). group_index: n - 1, the number of earlier
    convolutions in the accumulation group.
    """

    ALPHAS = ("one", "learned")
    GRADIENTS = ("latent", "accumulated")

    def __init__(self, *, alpha: str = "one", gradient: str = "latent", group_index: int = 0) -> None:
        super().__init__()
        if alpha not in self.ALPHAS:
            raise ValueError(f"alpha must be one of {self.ALPHAS}, found {alpha!r}")
        if gradient not in self.GRADIENTS:
            raise ValueError(f"gradient must be one of {self.GRADIENTS}, found {gradient!r}")
        self.gradient = gradient
        self.alpha = nn.Parameter(torch.ones(group_index + 1)) if alpha == "learned" else None

    def decompose(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """[(signs (O, I, kh, kw), scale (O,))], without gradient."""
        with torch.no_grad():
            total = accumulate_filters(latent, previous, self.alpha)
            return [(sign(normalize_filters(total)), mean_magnitude(latent))]

    def forward(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> Tensor:
        """W_n^B (O, I, kh, kw) with the gradient above."""
        ((signs, scale),) = self.decompose(latent, previous)
        value = signs * scale.view(-1, 1, 1, 1)
        if self.gradient == "accumulated":
            return straight_through(value, accumulate_filters(latent, previous, self.alpha))
        if self.alpha is not None:
            # Eq. 8 for the latents, the accumulated sum for alpha only: the filters are constants in that sum.
            frozen = [weight.detach() for weight in previous]
            return straight_through(value, latent + accumulate_filters(latent.detach(), frozen, self.alpha))
        return straight_through(value, latent)


class BatchNormSign(nn.Module):
    """A^B = Sign(BN(A)) with an affine batch normalization over (N, H, W)   (eq. 9 after the accumulation).

    The learned shift and slope of the normalization are per-channel thresholds of the sign. Gradient of the sign by
    `estimator`, a name in `bam_plugin.nn.sign.ESTIMATORS`. Tie rule Sign(0) = +1.
    """

    alphabet = "-1,+1"

    def __init__(self, *, num_feat: int, estimator: str = "clip") -> None:
        super().__init__()
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {tuple(ESTIMATORS)}, found {estimator!r}")
        self.estimator = estimator
        self.norm = nn.BatchNorm2d(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W) in {-1, +1}."""
        return ESTIMATORS[self.estimator](self.norm(x))

    def extra_repr(self) -> str:
        return f"estimator={self.estimator}"


WEIGHT_BINARIZERS: dict[str, type[nn.Module]] = {"bam": BAMWeight}
ACTIVATION_BINARIZERS: dict[str, type[nn.Module]] = {"bn_sign": BatchNormSign}
