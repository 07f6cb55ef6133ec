"""BinaryConv2d: a convolution that owns one weight binarizer and one activation binarizer.

Training computes conv2d(A^B, W^B) with the straight-through gradients. Evaluation computes the same in the order that
packed kernels use: first the integer dot products of the signs, exact in float32, then one multiplication by the scale
of the output channel. So a packed network and this one differ only where a float operation around them rounds
differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_plugin.nn.binarizers import ACTIVATION_BINARIZERS, WEIGHT_BINARIZERS


class BinaryConv2d(nn.Module):
    """A 1-bit convolution A_{n+1} = BinaryConv(W_n^B, A_n^B), without bias, padded by zeros (neither +1 nor -1).

    Args:
        in_channels, out_channels, kernel_size, stride: as in nn.Conv2d; the kernel is square.
        padding: zeros on each side; None keeps the size at stride 1 (kernel_size // 2).
        weight_binarizer, weight_options: a name in WEIGHT_BINARIZERS and keywords of its constructor.
        activation_binarizer, activation_options: a name in ACTIVATION_BINARIZERS and keywords of its constructor.
        output_scale: None (the paper), `scalar` (one learned factor per convolution) or `channel` (one per output
            channel) that multiplies the output; needed where many convolutions add into one identity path.
        output_scale_init: the factor's value at the start.

    `weight` (O, I, kh, kw) is the latent full-precision weight: trained, never used in a packed file.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        weight_binarizer: str = "bam",
        weight_options: dict[str, Any] | None = None,
        activation_binarizer: str = "bn_sign",
        activation_options: dict[str, Any] | None = None,
        output_scale: str | None = None,
        output_scale_init: float = 0.1,
    ) -> None:
        super().__init__()
        if weight_binarizer not in WEIGHT_BINARIZERS:
            raise ValueError(f"weight_binarizer must be one of {tuple(WEIGHT_BINARIZERS)}, found {weight_binarizer!r}")
        if activation_binarizer not in ACTIVATION_BINARIZERS:
            raise ValueError(
                f"activation_binarizer must be one of {tuple(ACTIVATION_BINARIZERS)}, found {activation_binarizer!r}"
            )
        if output_scale not in (None, "scalar", "channel"):
            raise ValueError(f"output_scale must be None, 'scalar' or 'channel', found {output_scale!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = kernel_size // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight)
        self.binarize_weight = WEIGHT_BINARIZERS[weight_binarizer](**(weight_options or {}))
        self.binarize_activation = ACTIVATION_BINARIZERS[activation_binarizer](
            num_feat=in_channels, **(activation_options or {})
        )
        factors = {None: 0, "scalar": 1, "channel": out_channels}[output_scale]
        self.output_scale = nn.Parameter(torch.full((factors,), float(output_scale_init))) if factors else None

    def decompose(self, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """What a packed file stores: [(signs (O, I, kh, kw) in {-1, +1}, scale (O,) with the output scale in it)]."""
        with torch.no_grad():
            bases = self.binarize_weight.decompose(self.weight, previous)
            if self.output_scale is None:
                return bases
            return [(signs, scale * self.output_scale) for signs, scale in bases]

    def forward(self, x: Tensor, previous: Sequence[Tensor] = ()) -> Tensor:
        """(N, I, H, W) -> (N, O, H', W'); `previous` are the earlier latent weights of the accumulation group."""
        signs_in = self.binarize_activation(x)
        if self.training:
            weight = self.binarize_weight(self.weight, previous)
            if self.output_scale is not None:
                weight = weight * self.output_scale.view(-1, 1, 1, 1)
            return F.conv2d(signs_in, weight, stride=self.stride, padding=self.padding)
        total = None
        for signs, scale in self.decompose(previous):
            dot = F.conv2d(signs_in, signs, stride=self.stride, padding=self.padding)
            term = dot * scale.view(1, -1, 1, 1)
            total = term if total is None else total + term
        return total

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
