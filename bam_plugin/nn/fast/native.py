"""The element-wise passes of the fast training path, compiled: loads `csrc/training.c`, checks what goes in.

Each takes maps on the CPU in channels_last (`usable`) and parameters in float32 (`takes`), and goes over its maps once,
where torch's operations go over them two to six times. What they take is for the caller to ask: the C code trusts it.
Without the library, which needs GCC at installation and a torch with GCC's OpenMP, fused.py computes with torch.
`BAM_NATIVE=0` in the environment switches the library off.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Iterator
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

ABI_VERSION = 1
LANES = 16
# Codes of csrc/training.c; the other estimators of bam_plugin.nn.sign are computed by torch.
ESTIMATORS = {"clip": 0, "identity": 1, "polynomial": 2}

_enabled = os.environ.get("BAM_NATIVE", "1") != "0"


@contextlib.contextmanager
def switched(value: bool) -> Iterator[None]:
    """Switch the library on or off inside the block, for the whole process."""
    global _enabled
    before, _enabled = _enabled, value
    try:
        yield
    finally:
        _enabled = before


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, or None where it was not built or does not fit this version of the package."""
    for path in sorted(Path(__file__).parent.glob("_training*")):
        try:
            _show_openmp()
            found = ctypes.CDLL(str(path))
            if found.bam_training_abi_version() != ABI_VERSION:
                raise OSError(f"ABI version {found.bam_training_abi_version()}, expected {ABI_VERSION}")
        except (OSError, AttributeError) as error:
            _log.warning("%s cannot be used (%s); the training goes on without it, a little slower", path, error)
            continue
        pointer, number = c_void_p, c_float
        shape = [c_int64, c_int, c_int]
        found.bam_fold.argtypes = [*[pointer] * 5, c_double, c_double, *[pointer] * 5, *shape]
        found.bam_signs.argtypes = [pointer] * 4 + [c_int, *shape]
        found.bam_scale.argtypes = [pointer, c_int, pointer, pointer, *shape]
        found.bam_norm_sign_backward.argtypes = [pointer, c_int, *[pointer] * 6, c_int, *[pointer] * 5, *shape]
        found.bam_weigh.argtypes = [pointer, number, number, c_int, pointer, *shape]
        found.bam_weigh_backward.argtypes = [pointer, pointer, number, number, c_int, pointer, pointer, *shape]
        found.bam_weigh_backward.restype = c_double
        for name in ("bam_fold", "bam_signs", "bam_scale", "bam_norm_sign_backward", "bam_weigh"):
            getattr(found, name).restype = None
        return found
    return None


def _show_openmp() -> None:
    """Make the symbols of torch's own OpenMP, which it has loaded, visible to the library, which names none.

    A second OpenMP would bring threads of its own, which wait for work in the way of torch's.
    """
    root = Path(torch.__file__).parent
    found = [*root.glob("lib/libgomp*"), *root.parent.glob("torch.libs/libgomp*")]
    ctypes.CDLL(str(found[0]) if found else "libgomp.so.1", mode=ctypes.RTLD_GLOBAL)


def usable(*maps: Tensor) -> bool:
    """Whether the functions below take the maps (N, C, H, W): channels_last, float32 or bfloat16, C divisible by 16."""
    return _enabled and all(_fits(each) for each in maps) and library() is not None


def takes(channels: int, *rows: Tensor) -> bool:
    """Whether these are parameters of so many channels that the functions below take: (C,) float32 on the CPU."""
    return all(
        each.shape == (channels,) and each.dtype == torch.float32 and each.device.type == "cpu" and each.is_contiguous()
        for each in rows
    )


def _fits(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.shape[1] % LANES == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def fold(
    x: Tensor, gamma: Tensor, beta: Tensor, running: tuple[Tensor, Tensor], *, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch normalization of x as x slope + shift: (mean, 1 / deviation, slope, shift), each (C,).

    Moves the running mean and variance as nn.BatchNorm2d does.
    """
    channels = x.shape[1]
    work = _doubles(torch.get_num_threads() * 2 * channels)
    mean, inverse_deviation, slope, shift = x.new_empty(4, channels)
    _library().bam_fold(
        *(each.data_ptr() for each in (x, gamma, beta, *running)),
        momentum,
        eps,
        *(each.data_ptr() for each in (work, mean, inverse_deviation, slope, shift)),
        *_shape(x),
    )
    return mean, inverse_deviation, slope, shift


def signs(x: Tensor, slope: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Sign(x slope + shift) in {-1, +1} as bfloat16 or float32; slope and shift are (C,) float32."""
    out = _empty_like(x, dtype)
    _library().bam_signs(
        x.data_ptr(), slope.data_ptr(), shift.data_ptr(), out.data_ptr(), dtype == torch.bfloat16, *_shape(x)
    )
    return out


def scaled(dot: Tensor, scale: Tensor) -> Tensor:
    """The product dot * scale in float32; dot is bfloat16 or float32, scale (C,) float32."""
    out = _empty_like(dot, torch.float32)
    _library().bam_scale(dot.data_ptr(), dot.dtype == torch.bfloat16, scale.data_ptr(), out.data_ptr(), *_shape(dot))
    return out


def norm_sign_backward(
    grad: Tensor,
    x: Tensor,
    *,
    slope: Tensor,
    shift: Tensor,
    mean: Tensor,
    inverse_deviation: Tensor,
    gamma: Tensor,
    estimator: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of y = Sign(BN(x)), with the statistics of the batch, to x, gamma and beta.

    grad: of y, bfloat16 or float32 in channels_last. mean, inverse_deviation: of x. slope, shift: of the folded BN.
    """
    channels = x.shape[1]
    work = _doubles(torch.get_num_threads() * 2 * channels)
    rows, gradients = x.new_empty(3 * channels), x.new_empty(2, channels)
    out = _empty_like(x, torch.float32)
    _library().bam_norm_sign_backward(
        grad.data_ptr(),
        grad.dtype == torch.bfloat16,
        *(each.data_ptr() for each in (x, slope, shift, mean, inverse_deviation, gamma)),
        ESTIMATORS[estimator],
        *(each.data_ptr() for each in (work, rows, out, gradients[0], gradients[1])),
        *_shape(x),
    )
    return out, gradients[0], gradients[1]


def weigh(x: Tensor, scale: float, *, offset: float, magnitude: bool) -> Tensor:
    """The product x * (offset + scale * E(x)), E being the mean over channels, of magnitudes with `magnitude`."""
    out = _empty_like(x, torch.float32)
    _library().bam_weigh(x.data_ptr(), scale, offset, magnitude, out.data_ptr(), *_shape(x))
    return out


def weigh_backward(grad: Tensor, x: Tensor, scale: float, *, offset: float, magnitude: bool) -> tuple[Tensor, float]:
    """The gradients of `weigh` to x and to scale."""
    out, work = _empty_like(x, torch.float32), _doubles(torch.get_num_threads())
    grad_scale = _library().bam_weigh_backward(
        grad.data_ptr(), x.data_ptr(), scale, offset, magnitude, work.data_ptr(), out.data_ptr(), *_shape(x)
    )
    return out, grad_scale


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None  # see usable
    return found


def _doubles(count: int) -> Tensor:
    # A script may have set another default device.
    return torch.empty(count, dtype=torch.float64, device="cpu")


def _empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


def _shape(x: Tensor) -> tuple[int, int, int]:
    """(pixels, channels, threads)."""
    count, channels, height, width = x.shape
    return count * height * width, channels, torch.get_num_threads()
