"""The packed binary convolution as a torch operator, `torch.ops.bam_plugin.packed_conv2d`.

On the CPU it calls the kernels of the engine (`layer_kernel.py`); on other devices it unpacks the bits and calls
conv2d, which gives the same integers. It has a fake kernel, so torch.export and torch.compile take it as one node. It
has no gradient.
"""

from __future__ import annotations

import contextlib
import contextvars
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bam_plugin.engine.layer_kernel import LayerKernel

_isa: contextvars.ContextVar[str | None] = contextvars.ContextVar("isa", default=None)


@contextlib.contextmanager
def instruction_set(isa: str | None) -> Iterator[None]:
    """Inside the block, calls of this thread use `isa`, see `bam_plugin.engine.Engine`."""
    token = _isa.set(isa)
    try:
        yield
    finally:
        _isa.reset(token)


def unpack_signs(weight: Tensor, channels: int, kernel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packed filters (M, O, bytes) as signs (M, O, channels, kernel, kernel) in {-1, +1}."""
    bits = (weight[..., None] >> torch.arange(8, dtype=torch.uint8, device=weight.device)) & 1
    bits = bits.flatten(-2)[..., : kernel * kernel * channels]
    signs = (1 - 2 * bits.to(torch.int8)).to(dtype)
    return signs.reshape(*weight.shape[:2], kernel, kernel, channels).permute(0, 1, 4, 2, 3).contiguous()


def sign_maps(x: Tensor, threshold: Tensor, flip: Tensor) -> list[Tensor]:
    """Per activation base a boolean map (N, C, H, W): True where the binarized activation has its higher value."""
    pairs = zip(threshold, flip, strict=True)
    return [(x >= base.view(1, -1, 1, 1)) ^ turned.view(1, -1, 1, 1).bool() for base, turned in pairs]


def simulated_conv2d(
    x: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, flip: Tensor, kernel: int, alphabet: str
) -> Tensor:
    """`packed_conv2d` by torch's float convolution, on any device: the same result."""
    total = None
    low = 0.0 if alphabet == "0,1" else -1.0
    filters = unpack_signs(weight, x.shape[1], kernel)
    for base, signs in enumerate(sign_maps(x, threshold, flip)):
        values = torch.where(signs, 1.0, low)
        for signs_out, factor in zip(filters, scale[base], strict=True):
            term = F.conv2d(values, signs_out, padding=kernel // 2) * factor.view(1, -1, 1, 1)
            total = term if total is None else total + term
    assert total is not None
    return total.contiguous(memory_format=_memory_format(x))


@torch.library.custom_op("bam_plugin::packed_conv2d", mutates_args=())
def packed_conv2d(
    x: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, flip: Tensor, kernel: int, alphabet: str
) -> Tensor:
    """Binarize x (N, C, H, W) float32 and convolve it with packed filters, stride 1, size kept: (N, O, H, W).

    The result is the sum over activation bases n and weight bases m (m first) of fl(scale[n, m] * dot product), equal
    on every device. It is channels_last if x is, else contiguous. `mixed_format.PackedLayer` describes the other
    tensors.
    """
    return simulated_conv2d(x, weight, scale, threshold, flip, kernel, alphabet)


@packed_conv2d.register_fake
def _fake(
    x: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, flip: Tensor, kernel: int, alphabet: str
) -> Tensor:
    batch, _, height, width = x.shape
    shape = (batch, weight.shape[1], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))


@packed_conv2d.register_kernel("cpu")
def _run_kernels(
    x: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, flip: Tensor, kernel: int, alphabet: str
) -> Tensor:
    batch, _, height, width = x.shape
    tensors = (weight, scale, threshold, flip)
    layer = _layer(tensors, kernel, alphabet)
    out = torch.empty((batch, weight.shape[1], height, width), memory_format=_memory_format(x))
    source, result = x.detach().permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
    if not source.is_contiguous():
        source = source.contiguous()
    nhwc = result if result.is_contiguous() else torch.empty(result.shape)
    for image, made in zip(source.numpy(), nhwc.numpy(), strict=True):
        layer.run(image, made, torch.get_num_threads())
    if nhwc is not result:
        result.copy_(nhwc)
    return out


def _memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of x; contiguous if x is both."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@dataclass(frozen=True)
class _Prepared:
    """The kernel of a layer, and the state of the tensors that it was made from."""

    layer: LayerKernel
    others: tuple[weakref.ref, ...]
    key: tuple[object, ...]


_prepared: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _is_alive(reference: weakref.ref, tensor: Tensor) -> bool:
    return reference() is tensor


def _layer(tensors: tuple[Tensor, ...], kernel: int, alphabet: str) -> LayerKernel:
    """The kernel of a layer. It is made once for the same unchanged tensors, and freed with its weight."""
    isa = _isa.get()
    # Tensors made in inference mode do not count their changes, so nothing shows whether they changed.
    counted = not any(tensor.is_inference() for tensor in tensors)
    key = (isa, kernel, alphabet, *(tensor._version for tensor in tensors)) if counted else ()
    found = _prepared.get(tensors[0]) if counted else None
    if found is not None and found.key == key and all(map(_is_alive, found.others, tensors[1:])):
        return found.layer
    weight, scale, threshold, flip = (np.array(tensor.detach().numpy()) for tensor in tensors)
    layer = LayerKernel(
        weight=weight, scale=scale, threshold=threshold, flip=flip, kernel=kernel, alphabet=alphabet, isa=isa
    )
    if counted:
        _prepared[tensors[0]] = _Prepared(layer, tuple(map(weakref.ref, tensors[1:])), key)
    return layer
