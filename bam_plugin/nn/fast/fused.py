"""The fast path of training: batch normalization, sign and binary convolution as one autograd function.

The readable modules say what is computed; here it is computed with less work and memory, on CPU and GPU:
- The forward convolution runs on signs in a 16-bit type with float32 sums. Its result is an integer small enough to be
  exact in that type, so nothing is lost (but for sums beyond 512 under autocast, see _dtype_of_signs); scales are
  multiplied in float32.
- Only the input of the normalization is saved, a tensor that the identity path and the accumulation keep anyway. Signs
  and the window of the gradient are computed from it again, bit for bit, in a pass that is cheaper than reading them.
- The convolutions of the backward pass run in the dtype of the data, or in autocast's where autocast is on.
`BAM_FUSED=0` in the environment, or `set_enabled(False)`, switches to the readable modules.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bam_plugin.nn.fast import native
from bam_plugin.nn.sign import decay_shape

aten = torch.ops.aten

# Greatest magnitude up to which every integer is exact; up to twice of it every even integer is.
_EXACT_INTEGERS = {torch.bfloat16: 256, torch.float16: 2048}

_enabled = os.environ.get("BAM_FUSED", "1") != "0"


def enabled() -> bool:
    """Whether modules in training mode use the functions below."""
    return _enabled


def set_enabled(value: bool) -> None:
    """Switch the fast path on or off for the whole process."""
    global _enabled
    _enabled = value


@contextlib.contextmanager
def switched(value: bool) -> Iterator[None]:
    """`set_enabled(value)` inside the block."""
    before = enabled()
    set_enabled(value)
    try:
        yield
    finally:
        set_enabled(before)


def enabled_for(x: Tensor) -> bool:
    """Whether modules in training mode use the functions below for `x`: real values on a CPU or GPU, run eagerly."""
    return _enabled and type(x) is Tensor and x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling()


def supports_norm(norm: nn.Module, x: Tensor) -> bool:
    """Whether `norm` is a BatchNorm2d that just uses the statistics of its batch (no subclass, not frozen)."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.running_mean is not None
        and norm.num_features == x.shape[1]
        and norm.weight.dtype == _computed_as(x)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see this module's calls, which the fast path leaves out."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def binary_conv(
    x: Tensor,
    *,
    norm: nn.BatchNorm2d,
    estimator: str,
    progress: float,
    signs: Tensor,
    magnitude: Tensor,
    carrier: Tensor,
    output_scale: Tensor | None,
    stride: int,
    padding: int,
) -> Tensor:
    """conv2d(Sign(norm(x)), W^B * output_scale) with W^B = magnitude * signs, and the straight-through gradients.

    Equal to the same written with `norm`, `estimated_sign`, `straight_through(W^B, carrier)` and F.conv2d, but for
    rounding; it updates the running statistics of `norm` (see supports_norm). Under autocast the result is float32
    all the same, gradients are rounded to autocast's dtype where they enter a convolution, and so are sums of signs
    that the dtype cannot hold (in bfloat16 beyond 512, see _dtype_of_signs).

    Args:
        x: (N, I, H, W), contiguous or channels_last; the result has its memory format.
        norm: see supports_norm.
        estimator: a name in bam_plugin.nn.ESTIMATORS.
        progress: of the training, see bam_plugin.nn.sign.estimated_sign.
        signs: (O, I, k, k) in {-1, +1}, a constant.
        magnitude: (O,), a constant.
        carrier: (O, I, k, k), gets the gradient of W^B.
        output_scale: None, or the factors (1,) or (O,).
        stride: of the convolution.
        padding: of the convolution, zeros on each side.
    """
    gradient_dtype = _autocast_dtype(x.device.type)
    x = x.to(_computed_as(x))
    with _no_autocast(x.device.type, gradient_dtype):
        return _BinaryConv.apply(
            x,
            norm.weight,
            norm.bias,
            carrier,
            output_scale,
            norm,
            (estimator, progress),
            signs,
            magnitude,
            (stride, padding),
            gradient_dtype or x.dtype,
        )


def weigh(x: Tensor, scale: Tensor, *, offset: float, statistic: str) -> Tensor:
    """The product x * (offset + scale * E(x)), E being the mean (`mean`) or mean magnitude (`mean_abs`) over channels.

    x is (N, C, H, W), scale a scalar. ActivationScale in mode `spatial` says the same in plain operations.
    """
    return _Weigh.apply(x, scale, offset, statistic)


def _computed_as(x: Tensor) -> torch.dtype:
    """The dtype of sums and thresholds: at least float32, whatever precision the layer before computed in."""
    return torch.float32 if x.dtype in _EXACT_INTEGERS else x.dtype


class _BinaryConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        carrier: Tensor,
        output_scale: Tensor | None,
        norm: nn.BatchNorm2d,
        estimator: tuple[str, float],
        signs: Tensor,
        magnitude: Tensor,
        geometry: tuple[int, int],
        gradient_dtype: torch.dtype,
    ) -> Tensor:
        mean, inverse_deviation, slope, shift = _fold(x, norm)
        dtype = _dtype_of_signs(x, signs, gradient_dtype)
        dot = _convolve(_signs(x, slope, shift, dtype), signs.to(dtype), geometry)
        scale = magnitude.contiguous() if output_scale is None else magnitude * output_scale
        ctx.save_for_backward(x, gamma, mean, inverse_deviation, slope, shift, signs, magnitude, scale, output_scale)
        ctx.options = (norm.eps, estimator, geometry, gradient_dtype)
        if x.dtype == torch.float32 and native.usable(dot) and native.takes(dot.shape[1], scale):
            return native.scaled(dot, scale)
        return dot.to(x.dtype).mul_(scale.view(1, -1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mean, inverse_deviation, slope, shift, signs, magnitude, scale, output_scale = ctx.saved_tensors
        eps, estimator, geometry, dtype = ctx.options
        needs = ctx.needs_input_grad
        weight = (signs * scale.view(-1, 1, 1, 1)).to(dtype)
        grad_signs, grad_weight = _convolve_backward(grad.to(dtype), _signs(x, slope, shift, dtype), weight, geometry)
        if (
            x.dtype == torch.float32
            and estimator[0] in native.ESTIMATORS
            and native.usable(x, grad_signs)
            and native.takes(x.shape[1], slope, shift, mean, inverse_deviation, gamma)
        ):
            grad_x, grad_gamma, grad_beta = native.norm_sign_backward(
                grad_signs,
                x,
                slope=slope,
                shift=shift,
                mean=mean,
                inverse_deviation=inverse_deviation,
                gamma=gamma,
                estimator=estimator[0],
            )
        else:
            grad_normalized = _through_sign(grad_signs.to(x.dtype), _normalize(x, slope, shift), estimator)
            grad_x, grad_gamma, grad_beta = aten.native_batch_norm_backward(
                grad_normalized, x, gamma, None, None, mean, inverse_deviation, True, eps, needs[:3]
            )
        grad_weight = grad_weight.to(x.dtype)
        grad_carrier, grad_scale = grad_weight, None
        if output_scale is not None:
            grad_carrier = grad_weight * output_scale.view(-1, 1, 1, 1)
            grad_scale = (grad_weight * signs).sum(dim=(1, 2, 3)) * magnitude
            if output_scale.numel() == 1:
                grad_scale = grad_scale.sum().view(1)
        return grad_x, grad_gamma, grad_beta, grad_carrier, grad_scale, *[None] * 6


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, offset: float, statistic: str) -> Tensor:
        ctx.statistic, ctx.offset = statistic, offset
        if x.dtype == torch.float32 and native.usable(x):
            ctx.save_for_backward(x, scale, None, None)
            return native.weigh(x, scale.item(), offset=offset, magnitude=statistic == "mean_abs")
        mean = (x.abs() if statistic == "mean_abs" else x).mean(dim=1, keepdim=True)
        factor = mean * scale + offset
        ctx.save_for_backward(x, scale, mean, factor)
        return x * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, factor = ctx.saved_tensors
        if mean is None:
            grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
            magnitude = ctx.statistic == "mean_abs"
            grad_x, grad_scale = native.weigh_backward(grad, x, scale.item(), offset=ctx.offset, magnitude=magnitude)
            return grad_x, scale.new_full(scale.shape, grad_scale), None, None
        # dL/d(factor) per pixel, and from it the gradients of the two things that the factor is made of.
        product = grad * x
        grad_factor = product.sum(dim=1, keepdim=True)
        grad_scale = (grad_factor * mean).sum().view(scale.shape)
        grad_mean = grad_factor * (scale / x.shape[1])
        grad_x = torch.mul(grad, factor, out=product)
        if ctx.statistic == "mean_abs":
            grad_x.addcmul_(torch.sgn(x), grad_mean)
        else:
            grad_x.add_(grad_mean)
        return grad_x, grad_scale, None, None


def _fold(x: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """BN(x) as x slope + shift: (mean, 1 / deviation, slope, shift), each (C,); moves the running statistics."""
    if x.numel() <= x.shape[1]:
        raise ValueError(
            f"batch statistics need more than one value per channel, found input of shape {tuple(x.shape)}"
        )
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    assert norm.running_mean is not None and norm.running_var is not None  # supports_norm
    running = (norm.running_mean, norm.running_var)
    if x.dtype == torch.float32 and native.usable(x) and native.takes(x.shape[1], norm.weight, norm.bias, *running):
        mean, inverse_deviation, slope, shift = native.fold(
            x, norm.weight, norm.bias, running, momentum=momentum or 0.0, eps=norm.eps
        )
    else:
        mean, variance = torch.batch_norm_update_stats(x, *running, momentum or 0.0)
        inverse_deviation = torch.rsqrt(variance + norm.eps)
        slope = inverse_deviation * norm.weight
        shift = _never_zero(torch.addcmul(norm.bias, mean, slope, value=-1))
    return mean, inverse_deviation, slope, shift


def _never_zero(shift: Tensor) -> Tensor:
    """The shift of a normalization, so that x * slope + shift is never -0.0, whose sign bit would make a tie -1.

    A product that underflows makes -0.0 of a shift of zero, in one fused multiply-add even of +0.0. Beside a shift of
    this magnitude at least (3e-24 in float32) the exact sum is zero, and then +0.0, or large enough not to underflow.
    """
    limits = torch.finfo(shift.dtype)
    least = 4 * limits.tiny / limits.eps**2
    return shift.masked_fill(shift.abs() < least, least)


def _signs(x: Tensor, slope: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Sign(BN(x)) as `dtype`, computed alike in both passes, so that both see the same signs."""
    kinds = (torch.float32, torch.bfloat16)
    if x.dtype == torch.float32 and dtype in kinds and native.usable(x) and native.takes(x.shape[1], slope, shift):
        return native.signs(x, slope, shift, dtype)
    return _sign(_normalize(x, slope, shift), dtype)


def _normalize(x: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """BN(x) from its folded form."""
    return torch.addcmul(shift.view(1, -1, 1, 1), x, slope.view(1, -1, 1, 1))


def _sign(normalized: Tensor, dtype: torch.dtype) -> Tensor:
    """Sign in {-1, +1} as `dtype`: the sign bit, which rounding keeps. Comparing with 0 takes several times longer.

    The values must not hold -0.0, see _never_zero.
    """
    return torch.copysign(torch.ones((), dtype=dtype, device=normalized.device), normalized.to(dtype))


def _through_sign(grad: Tensor, normalized: Tensor, estimator: tuple[str, float]) -> Tensor:
    """`grad` times the derivative of the estimator (name, progress) at `normalized`; both may be overwritten."""
    name, progress = estimator
    if name == "identity":
        return grad
    if name == "polynomial":
        return grad.mul_(normalized.abs_().mul_(-2).add_(2).clamp_(min=0))
    if name == "ede":
        steepness, height = decay_shape(progress)
        value = normalized.mul_(steepness).tanh_()
        return aten.tanh_backward.grad_input(grad.mul_(steepness * height), value, grad_input=grad)
    # hardtanh's own gradient leaves out the ends of the window; the next float beyond them takes them in.
    beyond = 1.0 + torch.finfo(normalized.dtype).eps
    return aten.hardtanh_backward.grad_input(grad, normalized, -beyond, beyond, grad_input=grad)


def _convolve(signs_in: Tensor, signs: Tensor, geometry: tuple[int, int]) -> Tensor:
    stride, padding = geometry
    if _is_matrix_product(signs_in, signs, geometry):
        return _as_map(_as_rows(signs_in) @ signs.flatten(1).t(), signs_in)
    return F.conv2d(signs_in, signs, stride=stride, padding=padding)


def _convolve_backward(
    grad: Tensor, signs_in: Tensor, weight: Tensor, geometry: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Gradients of conv2d(signs_in, weight) with respect to both."""
    stride, padding = geometry
    if _is_matrix_product(grad, weight, geometry):
        rows = _as_rows(grad)
        grad_weight = (rows.t() @ _as_rows(signs_in)).view(weight.shape)
        return _as_map(rows @ weight.flatten(1), grad), grad_weight
    grad_signs, grad_weight, _ = aten.convolution_backward(
        grad, signs_in, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return grad_signs, grad_weight


def _is_matrix_product(x: Tensor, weight: Tensor, geometry: tuple[int, int]) -> bool:
    """Whether the convolution multiplies rows of pixels in memory order by a matrix (several times faster then)."""
    return weight.shape[2:] == (1, 1) and geometry == (1, 0) and x.is_contiguous(memory_format=torch.channels_last)


def _as_rows(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels_last -> (N H W, C), a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _as_map(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of _as_rows, with the positions of `like`."""
    count, _, height, width = like.shape
    return rows.view(count, height, width, -1).permute(0, 3, 1, 2)


def _dtype_of_signs(x: Tensor, signs: Tensor, gradient_dtype: torch.dtype) -> torch.dtype:
    """The fastest dtype in which the convolution of signs is exact, else that of `x`.

    A sum of K signs is an even integer where K is, and K is at every border where the channels are.
    Autocast's own type is taken in any case: 64 channels and 3x3 taps make sums up to 576, of which bfloat16 rounds
    those beyond 512, where more than 94 % of the taps agree.
    """
    if gradient_dtype != x.dtype:
        return gradient_dtype
    dtype = _fast_dtype(x.device.type) if x.dtype == torch.float32 else None
    if dtype is None:
        return x.dtype
    limit = _EXACT_INTEGERS[dtype] * (2 if signs.shape[1] % 2 == 0 else 1)
    return dtype if math.prod(signs.shape[1:]) <= limit else x.dtype


def _fast_dtype(device_type: str) -> torch.dtype | None:
    """A 16-bit dtype that the device multiplies faster than float32, with float32 sums; None without one."""
    if device_type == "cuda":
        return torch.float16
    if device_type == "cpu" and cpu_multiplies_bfloat16():
        return torch.bfloat16
    return None


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16 (x86 only is asked)."""
    # torch has no public question for this; without the answer float32 is right, only slower.
    probes = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(probe() for probe in probes if probe is not None)


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of autocast, None where it is off."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def _no_autocast(device_type: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype is None else torch.autocast(device_type, enabled=False)
