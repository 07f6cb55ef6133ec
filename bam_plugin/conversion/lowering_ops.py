"""The lowering of every layer, function and method that a packed graph can express. The tables stand at the end.

A handler takes the emitter, the module (if it is one) and the arguments of the call. At least one of them is a Value.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_plugin.conversion.lowering_emitter import Emitter, Magnitude, Value
from bam_plugin.mixed.activation_steps import activation_steps, finite_array, norm_affine
from bam_plugin.nn.activations import ActivationBinarizer, window_filter
from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.nn.upsampling import MATLAB, bicubic
from bam_plugin.packed.bits import pack_filters
from bam_plugin.packed.errors import ConversionError


def _square(value: Any) -> int | None:
    """The number of a convolution setting, single or as a pair of equal ones; None for two different ones."""
    pair = value if isinstance(value, tuple) else (value, value)
    return pair[0] if len(set(pair)) == 1 and isinstance(pair[0], int) else None


def _conv(emit: Emitter, module: nn.Conv2d, x: Value) -> Value:
    kernel = _square(module.kernel_size)
    same = kernel is not None and _square(module.padding) == kernel // 2
    stride = _square(module.stride)
    if not same or stride is None or _square(module.dilation) != 1 or module.padding_mode != "zeros":
        raise ConversionError(
            f"{emit.where}: only square convolutions of odd size, dilation 1 and zero padding of half the kernel "
            f"can be packed, found {module}"
        )
    attrs = {name: number for name, number in (("groups", module.groups), ("stride", stride)) if number > 1}
    tensors = {"weight": finite_array(module.weight, emit.where)}
    if module.bias is not None:
        tensors["bias"] = finite_array(module.bias, emit.where)
    return emit.add("conv2d", x, attrs=attrs, tensors=tensors)


def _binary_conv(emit: Emitter, module: BinaryConv2d, x: Value, previous: tuple[Tensor, ...] = ()) -> Value:
    """Sum over the activation's and the weight's bases, in the order of BinaryConv2d's evaluation."""
    if module.stride != 1 or module.padding != module.kernel_size // 2:
        raise ConversionError(f"{emit.where}: only stride 1 with size-keeping padding can be packed")
    activation = module.binarize_activation
    pairs = module.decompose(previous)
    if activation.alphabet is None:
        terms = (signs * scale.view(-1, 1, 1, 1) for signs, scale in pairs)
        weight = finite_array(functools.reduce(operator.add, terms), emit.where)
        emit.notes[emit.layer] = "not packed: float activations"
        return emit.add("conv2d", x, tensors={"weight": weight})
    filters = [pack_filters(signs.cpu().numpy().transpose(0, 2, 3, 1) < 0) for signs, _ in pairs]
    attrs = {"kernel": module.kernel_size, "alphabet": activation.alphabet}
    total = None
    for signs_in, factor in _signs(emit, activation, x):
        for packed, (_, scale) in zip(filters, pairs, strict=True):
            scaled = finite_array(scale if factor is None else scale * factor, emit.where)
            tensors = {"weight": packed, "scale": np.broadcast_to(scaled, packed.shape[:1])}
            term = emit.add("binary_conv2d", signs_in, attrs=attrs, tensors=tensors)
            total = term if total is None else emit.add("add", total, term)
    assert total is not None
    # A second activation base needs its own scales, and so its own copy of the filters in the file.
    bases = f" in {len(filters)} bases" if len(filters) > 1 else ""
    copies = f", {activation.bases} copies" if activation.bases > 1 else ""
    emit.notes[emit.layer] = f"packed{bases}{copies}"
    if activation.has_magnitude:
        total = emit.add("mul", total, _window_mean(emit, activation, x, module.kernel_size))
    return total


def _signs(emit: Emitter, activation: ActivationBinarizer, x: Value) -> list[tuple[Value, Tensor | None]]:
    """One sign map per base of the activation, with its factor."""
    path = f"{emit.where}.binarize_activation"
    return [
        (emit.add("threshold", x, name=path, tensors={"threshold": threshold, "flip": flip}), factor)
        for threshold, flip, factor in activation_steps(activation, path)
    ]


def _window_mean(emit: Emitter, activation: ActivationBinarizer, x: Value, kernel: int) -> Value:
    """The mean over a convolution's window of the magnitude of the binarizer's value."""
    scale, shift = (finite_array(tensor, emit.where) for tensor in activation.affine())
    normalized = emit.add("affine", x, name=f"{emit.where}.normalized", tensors={"scale": scale, "shift": shift})
    mean = emit.add("channel_mean", normalized, name=f"{emit.where}.magnitude", attrs={"statistic": "mean_abs"})
    window = window_filter(kernel, like=torch.ones(())).numpy()
    return emit.add("conv2d", mean, name=f"{emit.where}.window", tensors={"weight": window})


def _norm(emit: Emitter, module: nn.BatchNorm2d, x: Value) -> Value:
    scale, shift = norm_affine(module, emit.where)
    return emit.add("affine", x, tensors={"scale": scale, "shift": shift})


def _prelu(emit: Emitter, module: nn.PReLU, x: Value) -> Value:
    slope = np.broadcast_to(finite_array(module.weight, emit.where), (emit.channels(x),))
    return emit.add("prelu", x, tensors={"slope": slope})


def _leaky_relu(emit: Emitter, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return emit.add("leaky_relu", x, attrs={"slope": float(np.float32(negative_slope))})


def _relu(emit: Emitter, x: Value, inplace: bool = False) -> Value:
    return emit.add("relu", x)


def _clamp(emit: Emitter, x: Value, low: float, high: float) -> Value:
    limit = np.finfo(np.float32).max  # the largest float bounds an open side, which changes no finite value
    low, high = (float(np.float32(min(max(bound, -limit), limit))) for bound in (low, high))
    return emit.add("clamp", x, attrs={"low": low, "high": high})


def _pixel_shuffle(emit: Emitter, x: Value, upscale_factor: int) -> Value:
    return emit.add("pixel_shuffle", x, attrs={"factor": int(upscale_factor)})


def _interpolate(
    emit: Emitter,
    x: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Value:
    factor = scale_factor[0] if isinstance(scale_factor, tuple) and len(set(scale_factor)) == 1 else scale_factor
    plain = size is None and not align_corners and not antialias
    if not plain or not isinstance(factor, int | float) or factor != int(factor):
        raise ConversionError(f"{emit.where}: only interpolation by one integer factor, align_corners off, can pack")
    return emit.add("resize", x, attrs={"factor": int(factor), "mode": mode})


def _bicubic(emit: Emitter, x: Value, factor: int, coefficient: float = MATLAB) -> Value:
    return emit.add("resize", x, attrs={"factor": factor, "mode": "bicubic", "coefficient": coefficient})


def _plus(emit: Emitter, left: Any, right: Any, *, alpha: Any = 1) -> Value:
    right = _times(emit, right, alpha) if isinstance(right, Value) else right * alpha
    if isinstance(left, Value) and isinstance(right, Value):
        return emit.add("add", left, right)
    value, constant = (left, right) if isinstance(left, Value) else (right, left)
    shift = emit.per_channel(constant, value)
    return emit.add("affine", value, tensors={"scale": np.ones_like(shift), "shift": shift}) if np.any(shift) else value


def _cat(emit: Emitter, tensors: Sequence[Any], dim: int = 0) -> Value:
    if dim not in (1, -3) or not all(isinstance(value, Value) for value in tensors):
        raise ConversionError(f"{emit.where}: only feature maps joined along their channels (dim=1) can be packed")
    return functools.reduce(lambda left, right: emit.add("cat", left, right), tensors)


def _minus(emit: Emitter, left: Any, right: Any) -> Value:
    return _plus(emit, left, _times(emit, right, -1) if isinstance(right, Value) else -right)


def _times(emit: Emitter, left: Any, right: Any) -> Value:
    if isinstance(left, Value) and isinstance(right, Value):
        return emit.add("mul", left, right)
    value, constant = (left, right) if isinstance(left, Value) else (right, left)
    factors = emit.per_channel(constant, value)
    if np.all(factors == factors[0]):
        return value if factors[0] == 1 else emit.add("scale", value, attrs={"factor": float(factors[0])})
    return emit.add("affine", value, tensors={"scale": factors, "shift": np.zeros_like(factors)})


def _divide(emit: Emitter, left: Value, right: Any) -> Value:
    if not isinstance(left, Value) or isinstance(right, Value):
        raise ConversionError(f"{emit.where}: division by a feature map cannot be packed")
    return _times(emit, left, 1 / right)


def _negate(emit: Emitter, x: Value) -> Value:
    return _times(emit, x, -1)


def _magnitude(emit: Emitter, x: Value) -> Magnitude:
    return Magnitude(x)


def _mean(emit: Emitter, x: Value | Magnitude, dim: Any = None, keepdim: bool = False) -> Value:
    if dim not in (1, [1], (1,), -3) or not keepdim:
        raise ConversionError(f"{emit.where}: only the mean over channels (dim=1, keepdim=True) can be packed")
    if isinstance(x, Magnitude):
        return emit.add("channel_mean", x.value, attrs={"statistic": "mean_abs"})
    return emit.add("channel_mean", x, attrs={"statistic": "mean"})


Handler = Callable[..., Any]
MODULES: dict[type[nn.Module], Handler] = {
    BinaryConv2d: _binary_conv,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _norm,
    nn.ReLU: lambda emit, module, x: _relu(emit, x),
    nn.LeakyReLU: lambda emit, module, x: _leaky_relu(emit, x, module.negative_slope),
    nn.PReLU: _prelu,
    nn.Hardtanh: lambda emit, module, x: _clamp(emit, x, module.min_val, module.max_val),
    nn.PixelShuffle: lambda emit, module, x: _pixel_shuffle(emit, x, module.upscale_factor),
    nn.Upsample: lambda emit, module, x: _interpolate(
        emit, x, module.size, module.scale_factor, module.mode, module.align_corners
    ),
    nn.Identity: lambda emit, module, x: x,
    nn.Dropout: lambda emit, module, x: x,
    nn.Dropout2d: lambda emit, module, x: x,
}
FUNCTIONS: dict[Any, Handler] = {
    operator.add: _plus,
    operator.iadd: _plus,
    torch.add: _plus,
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    operator.sub: _minus,
    torch.sub: _minus,
    operator.mul: _times,
    operator.imul: _times,
    torch.mul: _times,
    operator.truediv: _divide,
    torch.div: _divide,
    operator.neg: _negate,
    torch.abs: _magnitude,
    torch.mean: _mean,
    torch.relu: _relu,
    F.relu: _relu,
    F.leaky_relu: _leaky_relu,
    F.pixel_shuffle: _pixel_shuffle,
    F.interpolate: _interpolate,
    bicubic: _bicubic,
    torch.clamp: lambda emit, x, min=-math.inf, max=math.inf: _clamp(emit, x, min, max),
}
METHODS: dict[Any, Handler] = {
    "add": _plus,
    "add_": _plus,
    "sub": _minus,
    "mul": _times,
    "mul_": _times,
    "div": _divide,
    "abs": _magnitude,
    "mean": _mean,
    "relu": _relu,
    "clamp": lambda emit, x, min=-math.inf, max=math.inf: _clamp(emit, x, min, max),
    "contiguous": lambda emit, x: x,
    # A constant that takes the dtype and device of the image stays the same; so does the image.
    "type_as": lambda emit, x, other: x,
    "to": lambda emit, x, *args, **kwargs: x,
}
