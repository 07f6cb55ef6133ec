"""bfloat16 for the float parts of a binary network, and not for its binary convolutions.

The result of a binary convolution is a sum of up to K signs. bfloat16 holds integers exactly only up to 256, and a
rounded sum moves values across the threshold of the next sign. So the inputs become float32 again, and autocast is off
inside. The fast path (bam_plugin.nn.fast.fused) is an exception. Under autocast it rounds gradients, and it rounds sums
only beyond 512, where nearly all taps agree (64 channels and 3x3 taps reach 576).
"""

from __future__ import annotations

import contextlib
import platform
from typing import Any

import torch
from torch import nn

from bam_plugin.errors import BamError
from bam_plugin.nn.binary_conv import binary_convs
from bam_plugin.nn.fast import fused

PRECISIONS = ("float32", "bf16", "bf16_all")


def prepare(net: nn.Module, precision: str) -> None:
    """Make `net` ready for `autocast(precision)`: with `bf16` its binary convolutions compute in float32."""
    if precision not in PRECISIONS:
        raise BamError(f"train.precision must be one of {PRECISIONS}, found {precision!r}")
    if precision != "bf16":
        return
    for conv in binary_convs(net).values():
        conv.in_float32 = True


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass: `float32` (nothing), `bf16` (float parts) or `bf16_all` (binary ones too)."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def why_slow(device: torch.device, precision: str) -> str | None:
    """The warning for a precision that costs time on this machine, because the CPU emulates bfloat16; or None."""
    # We know nothing of processors other than x86.
    if precision == "float32" or device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    if fused.cpu_multiplies_bfloat16():
        return None
    return (
        f"train.precision is {precision}, but this CPU has no instructions for bfloat16 and emulates it, which makes "
        "the training about ten times slower: set train.precision to float32."
    )
