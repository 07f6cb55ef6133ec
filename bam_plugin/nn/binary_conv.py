"""BinaryConv2d: a convolution that owns one weight binarizer and one activation binarizer.

Training computes conv2d(A^B, W^B) with the straight-through gradients. Evaluation computes the same in the order that
packed kernels use: first the integer dot products of the signs, exact in float32, then one multiplication by the scale
of the output channel. So a packed network and this one differ only where a float operation around them rounds
differently.

Other computations are modes (`set_mode`), so nobody replaces a method:

    binary               A^B and W^B, as above
    binary_activations   A^B and the latent weights
    float                the continuous function of A whose derivative the estimator is, and the latent weights
    reach                0, or NaN if the window holds a NaN: it shows the inputs of a pixel

All modes have the same parameters and running statistics. Only `binary` accumulates the filters of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bam_plugin.nn.activations import ACTIVATION_BINARIZERS, EstimatedSign, combine, window_mean
from bam_plugin.nn.fast import fused
from bam_plugin.nn.weights import WEIGHT_BINARIZERS

MODES = ("binary", "binary_activations", "float", "reach")


def binary_convs(network: nn.Module) -> dict[str, BinaryConv2d]:
    """The binary convolutions of a network by their paths."""
    return {name: module for name, module in network.named_modules() if isinstance(module, BinaryConv2d)}


def set_mode(network: nn.Module, mode: str) -> int:
    """Let all binary convolutions of `network` compute in `mode`, one of MODES. Returns their number.

    Raises ValueError for an unknown mode, and for `float` if an activation binarizer has no such counterpart.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, found {mode!r}")
    convs = binary_convs(network)
    for name, conv in convs.items():
        if mode == "float" and not conv.binarize_activation.is_relaxable():
            usable = [key for key, kind in ACTIVATION_BINARIZERS.items() if kind.is_relaxable()]
            raise ValueError(
                f"{name or 'the convolution'}: {type(conv.binarize_activation).__name__} has no full-precision "
                f"counterpart; use a network with one of the activation binarizers {', '.join(usable)}"
            )
    for conv in convs.values():
        conv.mode = mode
    return len(convs)


def note_previous(conv: BinaryConv2d, note: Callable[[tuple[Tensor, ...]], None]) -> RemovableHandle:
    """Call `note` with the earlier latent weights that each call of `conv` gets from its accumulation group."""

    def hook(_conv: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(tuple(args[1] if len(args) > 1 else kwargs.get("previous", ())))

    return conv.register_forward_pre_hook(hook, with_kwargs=True)


class BinaryConv2d(nn.Module):
    """A 1-bit convolution A_{n+1} = BinaryConv(W_n^B, A_n^B), without bias, padded by zeros (neither +1 nor -1).

    Args:
        in_channels, out_channels, kernel_size, stride: as in nn.Conv2d; the kernel is square.
        padding: zeros on each side; None keeps the size at stride 1 (kernel_size // 2).
        weight_binarizer, weight_options: a name in WEIGHT_BINARIZERS and keywords of its constructor.
        activation_binarizer, activation_options: a name in ACTIVATION_BINARIZERS and keywords of its constructor.
        output_scale: None (the paper), `scalar` (one learned factor per convolution) or `channel` (one per output
            channel) that multiplies the output. Networks need it if many convolutions add into one identity path.
        output_scale_init: the factor's value at the start, for weights whose scale follows the latents; where the scale
            is 1 (bnn) the factor starts at this times E|W|, so that one value suits all binarizers.
        latent_gain: factor on the latents' Kaiming start. Only their signs and E|W| count, so it sets how many steps of
            the learning rate a sign flip takes: large latents hardly flip at all (see docs/training.md).

    A packed file needs `decompose` for the weights, the steps of `binarize_activation` (see activations.py) and the
    sum that `_evaluate` states. `weight` (O, I, kh, kw) is the latent full-precision weight. The training changes
    it, and no packed file holds it.

    Attributes for others to set, not in the state_dict:
        mode: one of MODES, see the module's text.
        in_float32: compute in float32 under autocast, except on the fast path, which rounds where it is harmless.
        map_hook: called in evaluation with (base, map (N, I, H, W)); its result takes the place of the map.
    """

    mode: str = "binary"
    in_float32: bool = False
    map_hook: Callable[[int, Tensor], Tensor] | None = None

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
        self.binarize_weight = WEIGHT_BINARIZERS[weight_binarizer](**(weight_options or {}))
        self.binarize_activation = ACTIVATION_BINARIZERS[activation_binarizer](
            num_feat=in_channels, **(activation_options or {})
        )
        factors = {None: 0, "scalar": 1, "channel": out_channels}[output_scale]
        start = float(output_scale_init)
        if not self.binarize_weight.scaled:
            start *= float(self.weight.detach().abs().mean())
        self.output_scale = nn.Parameter(torch.full((factors,), start)) if factors else None

    def decompose(self, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """The weights of a packed file: [(signs (O, I, kh, kw) in {-1, +1}, scale (O,) with the output scale in it)].

        The meta device has no values and no signs, so there the pairs have the shapes alone.
        """
        with torch.no_grad():
            if self.weight.is_meta:
                return [(self.weight, self.weight.new_empty(self.out_channels))] * self.binarize_weight.bases
            bases = self.binarize_weight.decompose(self.weight, previous)
            if self.output_scale is None:
                return bases
            return [(signs, scale * self.output_scale) for signs, scale in bases]

    def forward(self, x: Tensor, previous: Sequence[Tensor] = ()) -> Tensor:
        """(N, I, H, W) -> (N, O, H', W'); `previous` are the earlier latent weights of the accumulation group."""
        if self.mode == "reach":
            return self._reach(x)
        if self.mode != "binary":
            return self._convolve(x, self.weight)
        if self.training and self.is_fusable(x):
            return self._train_fused(x, previous)
        if self.in_float32:
            with torch.autocast(x.device.type, enabled=False):
                return self._compute(x.float(), previous)
        return self._compute(x, previous)

    def _compute(self, x: Tensor, previous: Sequence[Tensor]) -> Tensor:
        if self.training:
            return self._convolve(x, self.binarize_weight(self.weight, previous))
        return self._evaluate(x, previous)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """The activation of the mode with `weight` (O, I, kh, kw), times the output scale and the magnitude."""
        binarizer = self.binarize_activation
        value = binarizer.value(x)
        full_precision = self.mode == "float"
        activation = binarizer.relaxed(value) if full_precision else combine(binarizer.maps(value))
        if self.output_scale is not None:
            weight = weight * self.output_scale.view(-1, 1, 1, 1)
        out = F.conv2d(activation, weight, stride=self.stride, padding=self.padding)
        return out if full_precision else self._magnified(out, value)

    def is_fusable(self, x: Tensor) -> bool:
        """Whether training takes the fast path for `x`, see bam_plugin.nn.fast.fused."""
        activation, weight = self.binarize_activation, self.binarize_weight
        norm = activation.norm
        return (
            fused.enabled_for(x)
            and activation.fusable
            and weight.bases == 1
            and norm is not None
            and fused.supports_norm(norm, x)
            and not any(fused.has_hooks(part) for part in (activation, norm, weight))
        )

    def _train_fused(self, x: Tensor, previous: Sequence[Tensor]) -> Tensor:
        activation = self.binarize_activation
        assert isinstance(activation, EstimatedSign) and activation.norm is not None  # is_fusable
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
        value = self.binarize_activation.value(x)
        pairs = self.decompose(previous)
        total = None
        for base, (signs_in, factor) in enumerate(self.binarize_activation.maps(value)):
            if self.map_hook is not None:
                signs_in = self.map_hook(base, signs_in)
            for signs, scale in pairs:
                dot = F.conv2d(signs_in, signs, stride=self.stride, padding=self.padding)
                scale = scale if factor is None else scale * factor
                term = dot * scale.view(1, -1, 1, 1)
                total = term if total is None else total + term
        assert total is not None
        return self._magnified(total, value)

    def _magnified(self, out: Tensor, value: Tensor) -> Tensor:
        """`out` (N, O, H', W') times the window mean of the value's magnitude, where the binarizer has one."""
        if not self.binarize_activation.has_magnitude:
            return out
        magnitude = self.binarize_activation.magnitude(value)
        return out * window_mean(magnitude, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding)

    def _reach(self, x: Tensor) -> Tensor:
        window = x.new_ones(1, 1, self.kernel_size, self.kernel_size)
        seen = F.conv2d((x * 0).sum(1, keepdim=True), window, stride=self.stride, padding=self.padding)
        return seen.expand(-1, self.out_channels, -1, -1).clone()

    def extra_repr(self) -> str:
        """The options that `print` shows."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
