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

from bam_plugin.nn.binarizers import ACTIVATION_BINARIZERS, WEIGHT_BINARIZERS, BatchNormSign
from bam_plugin.nn.fast import fused


class BinaryConv2d(nn.Module):
    """A 1-bit convolution A_{n+1} = BinaryConv(W_n^B, A_n^B), without bias, padded by zeros (neither +1 nor -1).

    Args:
        in_channels, out_channels, kernel_size, stride: as in nn.Conv2d; the kernel is square.
        padding: zeros on each side; None keeps the size at stride 1 (kernel_size // 2).
        weight_binarizer, weight_options: a name in WEIGHT_BINARIZERS and keywords of its constructor.
        activation_binarizer, activation_options: a name in ACTIVATION_BINARIZERS and keywords of its constructor.
        output_scale: None (the paper), `scalar` (one learned factor per convolution) or `channel` (one per output
            channel) that multiplies the output; needed where many convolutions add into one identity path.
        output_scale_init: the factor's value at the start, for weights whose scale follows the latents; where the scale
            is 1 (bnn) the factor starts at this times E|W|, so that one value suits all binarizers.
        latent_gain: factor on the latents' Kaiming start. Only their signs and E|W| count, so it sets how many steps of
            the learning rate a sign flip takes: large latents hardly flip at all (see docs/training.md).

    A packed file needs `decompose` for the weights, the views of `binarize_activation` (see activations.py) and the
    sum that `_evaluate` states. `weight` (O, I, kh, kw) is the latent full-precision weight: trained, never used in a
    packed file.
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
        latent_gain: float = 1.0,
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
        with torch.no_grad():
            self.weight.mul_(latent_gain)
        weight_options = dict(weight_options or {})
        if weight_options.get("affine"):
            weight_options["num_filters"] = out_channels
        self.binarize_weight = WEIGHT_BINARIZERS[weight_binarizer](**weight_options)
        self.binarize_activation = ACTIVATION_BINARIZERS[activation_binarizer](
            num_feat=in_channels, **(activation_options or {})
        )
        factors = {None: 0, "scalar": 1, "channel": out_channels}[output_scale]
        start = float(output_scale_init)
        if not self.binarize_weight.scaled:
            start *= float(self.weight.detach().abs().mean())
        self.output_scale = nn.Parameter(torch.full((factors,), start)) if factors else None

    def decompose(self, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """What a packed file stores: [(signs (O, I, kh, kw) in {-1, +1}, scale (O,) with the output scale in it)]."""
        with torch.no_grad():
            bases = self.binarize_weight.decompose(self.weight, previous)
            if self.output_scale is None:
                return bases
            return [(signs, scale * self.output_scale) for signs, scale in bases]

    def forward(self, x: Tensor, previous: Sequence[Tensor] = ()) -> Tensor:
        """(N, I, H, W) -> (N, O, H', W'); `previous` are the earlier latent weights of the accumulation group."""
        return self._train(x, previous) if self.training else self._evaluate(x, previous)

    def _train(self, x: Tensor, previous: Sequence[Tensor]) -> Tensor:
        if self.is_fusable(x):
            return self._train_fused(x, previous)
        activation, magnitude = self.binarize_activation.split(x)
        weight = self.binarize_weight(self.weight, previous)
        if self.output_scale is not None:
            weight = weight * self.output_scale.view(-1, 1, 1, 1)
        out = F.conv2d(activation, weight, stride=self.stride, padding=self.padding)
        return out if magnitude is None else out * self._window_mean(magnitude)

    def is_fusable(self, x: Tensor) -> bool:
        """Whether training takes the fast path for `x`, see bam_plugin.nn.fast.fused."""
        activation, weight = self.binarize_activation, self.binarize_weight
        return (
            fused.enabled_for(x)
            and type(activation) is BatchNormSign
            and weight.bases == 1
            and fused.supports_norm(activation.norm, x)
            and not any(fused.has_hooks(part) for part in (activation, activation.norm, weight))
        )

    def _train_fused(self, x: Tensor, previous: Sequence[Tensor]) -> Tensor:
        activation = self.binarize_activation
        assert isinstance(activation, BatchNormSign)  # is_fusable
        pairs = self.binarize_weight.decompose(self.weight, previous)
        return fused.binary_conv(
            x,
            norm=activation.norm,
            estimator=activation.estimator,
            progress=activation.progress,
            signs=pairs[0][0],
            magnitude=pairs[0][1],
            carrier=self.binarize_weight.carrier(self.weight, previous, pairs),
            output_scale=self.output_scale,
            stride=self.stride,
            padding=self.padding,
        )

    def _evaluate(self, x: Tensor, previous: Sequence[Tensor]) -> Tensor:
        """Sum over activation bases n and weight bases m (m first) of scale_m factor_n dot, times the magnitude."""
        magnitude = None
        if self.binarize_activation.has_magnitude:
            signs_in, magnitude = self.binarize_activation.split(x)
            maps = [(signs_in, None)]
        else:
            maps = self.binarize_activation.decompose(x)
        pairs = self.decompose(previous)
        total = None
        for signs_in, factor in maps:
            for signs, scale in pairs:
                dot = F.conv2d(signs_in, signs, stride=self.stride, padding=self.padding)
                scale = scale if factor is None else scale * factor
                term = dot * scale.view(1, -1, 1, 1)
                total = term if total is None else total + term
        assert total is not None
        return total if magnitude is None else total * self._window_mean(magnitude)

    def _window_mean(self, magnitude: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, 1, H', W'), the mean over the convolution's window with zeros outside the image."""
        window = magnitude.new_full((1, 1, self.kernel_size, self.kernel_size), 1 / self.kernel_size**2)
        return F.conv2d(magnitude, window, stride=self.stride, padding=self.padding)

    def extra_repr(self) -> str:
        """The options that `print` shows."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
