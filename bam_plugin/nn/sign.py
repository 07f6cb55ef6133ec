"""The sign function and its straight-through estimators, forward and gradient side by side.

Sign(x) = +1 if x >= 0 else -1 (eq. 4 of Xin et al., ECCV 2020), so Sign(0) = +1; `torch.sign(0)` is 0 and must not be
used. Its derivative is zero almost everywhere, so training replaces it by an estimator: the forward pass is always the
exact sign, only the gradient differs. This is the one definition of the tie rule in training code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
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
        # One byte per element instead of the input itself: the mask is all that the gradient needs.
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


def identity_sign(x: Tensor) -> Tensor:
    """Sign with gradient 1 everywhere: d/dx = 1 (eq. 8: the gradient passes to the latent value unchanged)."""
    return _IdentitySign.apply(x)


def clipped_sign(x: Tensor) -> Tensor:
    """Sign with the gradient of hardtanh: d/dx = 1 if |x| <= 1 else 0 (Hubara et al., NeurIPS 2016)."""
    return _ClippedSign.apply(x)


def polynomial_sign(x: Tensor) -> Tensor:
    """Sign with a triangular gradient: d/dx = max(0, 2 - 2|x|) (Bi-Real Net: Liu et al., ECCV 2018)."""
    return _PolynomialSign.apply(x)


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": identity_sign,
    "clip": clipped_sign,
    "polynomial": polynomial_sign,
}
