"""The sign function and its straight-through estimators, forward and gradient side by side.

Sign(x) = +1 if x >= 0 else -1 (eq. 4 of Xin et al., ECCV 2020), so Sign(0) = +1. `torch.sign(0)` is 0 and must not be
used. The derivative of Sign is zero almost everywhere, so training replaces it by an estimator. The forward pass is
always the exact sign, and only the gradient differs. This is the one definition of the tie rule in training code.

A progressive estimator changes its shape with the progress of the training, 0 at the start and 1 at the end. First its
gradient is wide, reaches every value and lets signs flip. At the end it resembles the derivative of the sign.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def sign(x: Tensor) -> Tensor:
    """Sign(x) in {-1, +1} of the dtype and shape of `x`, Sign(0) = Sign(-0.0) = +1, no gradient (eq. 4)."""
    # Several times faster than torch.where with two numbers.
    return (x >= 0).to(x.dtype).mul_(2).sub_(1)


class _IdentitySign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class _ClippedSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        # The gradient needs only the mask: one byte per element instead of the input itself.
        ctx.save_for_backward(x.abs() <= 1)
        return sign(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (inside,) = ctx.saved_tensors
        return grad * inside


class _PolynomialSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return sign(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (2 - 2 * x.abs()).clamp_(min=0)


class _DecayingSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, progress: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.progress = progress
        return sign(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        steepness, height = decay_shape(ctx.progress)
        return grad * (steepness * height) * (1 - torch.tanh(steepness * x).square()), None


def identity_sign(x: Tensor) -> Tensor:
    """Sign with gradient 1 everywhere: d/dx = 1 (eq. 8: the gradient passes to the latent value unchanged)."""
    return _IdentitySign.apply(x)


def clipped_sign(x: Tensor) -> Tensor:
    """Sign with the gradient of hardtanh: d/dx = 1 if |x| <= 1 else 0 (Hubara et al., NeurIPS 2016)."""
    return _ClippedSign.apply(x)


def polynomial_sign(x: Tensor) -> Tensor:
    """Sign with a triangular gradient: d/dx = max(0, 2 - 2|x|) (Bi-Real Net: Liu et al., ECCV 2018)."""
    return _PolynomialSign.apply(x)


def decay_shape(progress: float) -> tuple[float, float]:
    """(t, k) of the function k tanh(t x) that stands for the sign at `progress` (0..1): t = 10^(2 progress - 1), from
    0.1 to 10, and k = max(1 / t, 1), so that its slope at 0 is 1 as long as t is below 1, and t afterwards.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must lie in 0..1, found {progress}")
    steepness = 10 ** (2 * progress - 1)
    return steepness, max(1 / steepness, 1.0)


def decaying_sign(x: Tensor, progress: float = 0.0) -> Tensor:
    """Sign with the gradient of k tanh(t x): d/dx = k t (1 - tanh(t x)^2), (t, k) = decay_shape(progress).

    It is nearly 1 everywhere at the start. At the end it is 10 at x = 0 and nearly 0 beyond |x| = 0.3. This is the
    error decay estimator of IR-Net (Qin et al., Forward and Backward Information Retention for Accurate Binary Neural
    Networks, CVPR 2020, eq. 10 to 12, with its limits 0.1 and 10 of t).
    """
    return _DecayingSign.apply(x, progress)


def soft_sign(x: Tensor) -> Tensor:
    """The integral of the estimator `polynomial`: x (2 - |x|) inside [-1, 1], else -1 or 1 (Bi-Real Net)."""
    inside = x.clamp(-1, 1)
    return inside * (2 - inside.abs())


def decaying_soft_sign(x: Tensor, progress: float = 0.0) -> Tensor:
    """The integral of the estimator `ede`: k tanh(t x), (t, k) = decay_shape(progress)."""
    steepness, height = decay_shape(progress)
    return height * torch.tanh(steepness * x)


# name -> function of x (N, ...); those in PROGRESSIVE take the progress as second argument.
ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "identity": identity_sign,
    "clip": clipped_sign,
    "polynomial": polynomial_sign,
    "ede": decaying_sign,
}
PROGRESSIVE = ("ede",)
# The function whose derivative each estimator is, with the same arguments.
RELAXATIONS: dict[str, Callable[..., Tensor]] = {
    "identity": lambda x: x,
    "clip": F.hardtanh,
    "polynomial": soft_sign,
    "ede": decaying_soft_sign,
}


def estimated_sign(x: Tensor, estimator: str, progress: float) -> Tensor:
    """Sign(x) with the gradient of the named estimator, at `progress` (0..1) where it is progressive."""
    return _apply(ESTIMATORS, x, estimator, progress)


def relaxed_sign(x: Tensor, estimator: str, progress: float) -> Tensor:
    """The continuous function whose derivative is the named estimator's, at `progress` (0..1)."""
    return _apply(RELAXATIONS, x, estimator, progress)


def _apply(table: dict[str, Callable[..., Tensor]], x: Tensor, estimator: str, progress: float) -> Tensor:
    return table[estimator](x, progress) if estimator in PROGRESSIVE else table[estimator](x)
