"""Eq. 6 taken literally: an alpha with a small J(a) = ||W_n - W_n^B(a)||^2, by an exact search along each coordinate.

With the other factors fixed, each sign of W_n^B flips at one value of a_i, so J is piecewise constant in a_i and its
minimum along that coordinate is found by sorting these breakpoints. Coordinates are searched in turn until none
improves. The end is a minimum along each coordinate, not over all alphas: of 1,300 random ones, most of them close to
(0, 0, 1), some were better in 19 of 60 groups of three random filters of 8x8x3x3. J is nearly minimal at
(0, ..., 0, 1), which switches the accumulation off. This module exists to show that, and to reproduce it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bam_plugin.nn.accumulation import accumulate_filters, normalize_filters
from bam_plugin.nn.sign import sign

MAX_SWEEPS = 10


def objective(latent: Tensor, previous: Sequence[Tensor], alpha: Tensor) -> Tensor:
    """J(alpha) of eq. 5 in float64, with the signs that the binarizer itself makes; `alpha` has n elements."""
    signs = sign(normalize_filters(accumulate_filters(latent, previous, alpha)))
    magnitude = latent.abs().mean(dim=(1, 2, 3), keepdim=True)
    return (latent - signs * magnitude).double().square().sum()


def solve_alpha(latent: Tensor, previous: Sequence[Tensor]) -> Tensor:
    """(a_1, ..., a_n) with J no greater than at (0, ..., 0, 1) and at (1, ..., 1); without gradient.

    The search starts from both of these points and the better end wins; of the interval of equal J that contains the
    minimum along a coordinate, the middle is taken. A coordinate keeps its value where no other has a lower J.
    """
    with torch.no_grad():
        count = len(previous) + 1
        if count == 1 or latent.is_meta:
            # The normalization removes any factor of a single filter; tensors without values have nothing to solve.
            return latent.new_ones(count)
        ones = latent.new_ones(count)
        last = torch.zeros_like(ones)
        last[-1] = 1
        candidates = [last, ones, _search(latent, previous, last), _search(latent, previous, ones)]
        costs = torch.stack([objective(latent, previous, alpha) for alpha in candidates])
        return candidates[int(costs.argmin())]


def _search(latent: Tensor, previous: Sequence[Tensor], start: Tensor) -> Tensor:
    """Coordinate search from `start` until a sweep improves nothing."""
    filters = torch.stack([*previous, latent]).double()
    centered = filters - filters.mean(dim=(2, 3, 4), keepdim=True)
    # J = constant - 2 sum(sign * gain): lowering J is raising the sum.
    gain = (latent * latent.abs().mean(dim=(1, 2, 3), keepdim=True)).double()
    alpha = start.double()
    for _ in range(MAX_SWEEPS):
        improved = False
        for index in range(len(alpha)):
            rest = torch.tensordot(alpha, centered, dims=1) - alpha[index] * centered[index]
            found = _best_factor(rest, centered[index], gain, float(alpha[index]))
            if found is not None:
                alpha[index] = found
                improved = True
        if not improved:
            break
    return alpha.to(start.dtype)


def _best_factor(rest: Tensor, direction: Tensor, gain: Tensor, current: float) -> float | None:
    """The t that maximizes sum(Sign(rest + t direction) * gain), or None where `current` is already as good."""
    moving = direction != 0
    slope, effect = direction[moving].sign(), gain[moving]
    order = (-rest[moving] / direction[moving]).sort()
    points = order.values
    if not len(points):
        return None
    # From t = -inf, where the signs are -slope, each breakpoint passed turns one sign to +slope.
    steps = 2 * (slope * effect)[order.indices]
    sums = torch.cat([-(slope * effect).sum().view(1), -(slope * effect).sum() + steps.cumsum(0)])
    left = torch.cat([points[:1] - 2, points])
    right = torch.cat([points, points[-1:] + 2])
    # Intervals of no width (equal breakpoints) cannot be entered.
    sums = torch.where(right > left, sums, -torch.inf)
    here = int(
        torch.searchsorted(points, torch.tensor([current], dtype=points.dtype, device=points.device), right=True)
    )
    best = int(sums.argmax())
    if not sums[best] > sums[here] + 1e-12 * steps.abs().sum():
        return None
    return float((left[best] + right[best]) / 2)
