"""What stands around a binary convolution in a network's body: BinaryLayer, and chains of them with accumulation.

BinaryLayer is one convolution with its normalization, identity path and RPReLU as a `Method` has them. BinaryChain is a
sequence of such layers of one width that forms an accumulation group of eq. 3 and eq. 9.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_plugin.nn.accumulation import ActivationScale
from bam_plugin.nn.activations import ACTIVATION_BINARIZERS
from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.nn.methods import Method


def body_conv(
    in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool, method: Method | None
) -> nn.Module:
    """A size-keeping convolution outside the chains: full precision (method None), or binary by `method`.

    A binary one stands alone, without accumulation (an identity path only where the method has one and the shape is
    kept), with a learned factor per output channel, 1 at the start.
    """
    if method is None:
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
    return BinaryLayer(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        method=method,
        bias=bias,
        output_scale="channel",
        output_scale_init=1.0,
    )


def rectifier(method: Method | None) -> nn.Module:
    """What stands between a full-precision convolution and binary ones by `method`: a ReLU, or a leaky one (slope 0.1).

    Behind a ReLU a sign that is taken of the map itself would be +1 everywhere.
    """
    return nn.LeakyReLU(0.1) if method is not None and method.needs_both_signs else nn.ReLU()


class RPReLU(nn.Module):
    """y = PReLU(x - a) + b with a, b and the slope (0.25 at the start) learned per channel   (ReActNet, ECCV 2020)."""

    def __init__(self, *, num_feat: int) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(num_feat, 1, 1))
        self.prelu = nn.PReLU(num_feat)
        self.shift_out = nn.Parameter(torch.zeros(num_feat, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.prelu(x - self.shift_in) + self.shift_out


class BinaryLayer(nn.Module):
    """One binary convolution of a body: y = [RPReLU] ( [RPReLU] ( [BN] ( conv(x) [+ bias] ) ) [+ identity] ).

    Args:
        in_channels, out_channels, kernel_size, stride, padding: see BinaryConv2d.
        method: says which binarizers and which of the parts in brackets; its `skip` is ignored if the shape changes.
        group_index: 0-based position in the accumulation group.
        norm: None follows the method; True or False decides.
        bias: add a learned bias, for networks whose convolutions have one.
        output_scale, output_scale_init, latent_gain: see BinaryConv2d.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        method: Method,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        group_index: int = 0,
        norm: bool | None = None,
        bias: bool = False,
        output_scale: str | None = None,
        output_scale_init: float = 0.1,
        latent_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv = BinaryConv2d(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            output_scale=output_scale,
            output_scale_init=output_scale_init,
            latent_gain=latent_gain,
            **method.conv_options(group_index),
        )
        keeps_shape = in_channels == out_channels and stride == 1 and self.conv.padding == kernel_size // 2
        self.skip = method.skip and keeps_shape
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.norm = nn.BatchNorm2d(out_channels) if (method.norm if norm is None else norm) else None
        self.rprelu = RPReLU(num_feat=out_channels) if method.rprelu else None
        self.rprelu_first = method.rprelu == "before"

    def forward(self, x: Tensor, previous: Sequence[Tensor] = (), identity: Tensor | None = None) -> Tensor:
        """(N, I, H, W) -> (N, O, H', W').

        previous: earlier latent weights of the accumulation group. identity: the map that the identity path adds; None
        for x.
        """
        out = self.conv(x, previous)
        if self.bias is not None:
            out = out + self.bias.view(1, -1, 1, 1)
        if self.norm is not None:
            out = self.norm(out)
        if self.rprelu is not None and self.rprelu_first:
            out = self.rprelu(out)
        if self.skip:
            out = out + (x if identity is None else identity)
        if self.rprelu is not None and not self.rprelu_first:
            out = self.rprelu(out)
        return out


class BinaryChain(nn.Module):
    """Binary layers in sequence, C -> C, that form one accumulation group; (N, C, H, W) -> (N, C, H, W).

    With A_1 = x and A_{n+1} = layer_n(input of layer n):
        input of layer n = b_1 A_1 + ... + b_n A_n   (eq. 9 before its BN and Sign), or A_n without accumulation.
    An identity path around layer n adds A_n. A leaky ReLU of the method stands between the layers. With several planes
    a step has that many layers with the same input, which see it through different thresholds; A_{n+1} = ((A_n + first)
    + second) ..., and a convolution accumulates the weights of its own plane.

    Args:
        num_feat, num_convs: channels and number of layers, or of steps.
        num_planes: layers of a step; more than one need an identity path in the method.
        plane_shift: the planes' thresholds start spread over -plane_shift .. plane_shift, in deviations of the input
            where the binarizer normalizes.
        method: see Method; `method.accumulate` switches eq. 9 on, accumulate_weights eq. 3.
        accumulate_weights: hand each convolution the latent weights of the earlier ones.
        beta, beta_statistic, beta_init, beta_offset: mode, statistic, start and offset of ActivationScale.
        norm: see BinaryLayer.
        relu: with full-precision activations (`method.float_activations`), rectify after each layer (`all`) or between
            the layers (`between`), as the full-precision network does; ignored otherwise.
        output_scale, output_scale_init, latent_gain: see BinaryConv2d.
    """

    def __init__(
        self,
        *,
        num_feat: int,
        num_convs: int,
        method: Method,
        num_planes: int = 1,
        plane_shift: float = 0.7,
        accumulate_weights: bool = True,
        beta: str = "spatial",
        beta_statistic: str = "mean_abs",
        beta_init: float = 1.0,
        beta_offset: float | None = None,
        norm: bool | None = None,
        relu: str = "all",
        output_scale: str | None = None,
        output_scale_init: float = 0.1,
        latent_gain: float = 1.0,
    ) -> None:
        super().__init__()
        if relu not in ("all", "between"):
            raise ValueError(f"relu must be 'all' or 'between', found {relu!r}")
        self.accumulate_weights = accumulate_weights
        self.num_planes = num_planes
        self.skip = method.skip
        self.leaky_slope = method.leaky_slope
        # Step by step, so that the layers of one step follow each other.
        self.layers = nn.ModuleList(
            BinaryLayer(
                in_channels=num_feat,
                out_channels=num_feat,
                method=plane,
                group_index=index if accumulate_weights else 0,
                norm=norm,
                output_scale=output_scale,
                output_scale_init=output_scale_init,
                latent_gain=latent_gain,
            )
            for index in range(num_convs)
            for plane in _planes(method, num_planes, plane_shift)
        )
        self.betas = None
        if method.accumulate:
            self.betas = nn.ModuleList(
                ActivationScale(mode=beta, statistic=beta_statistic, init=beta_init, offset=beta_offset)
                for _ in range(num_convs)
            )
        self.rectified = {"all": num_convs, "between": num_convs - 1}[relu] if method.float_activations else 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        total = None
        previous: tuple[tuple[Tensor, ...], ...] = ((),) * self.num_planes
        layers = tuple(cast("Iterable[BinaryLayer]", self.layers))
        for index in range(len(layers) // self.num_planes):
            step = layers[index * self.num_planes : (index + 1) * self.num_planes]
            source = x
            if self.betas is not None:
                weighted = self.betas[index](x)
                total = weighted if total is None else total + weighted
                source = total
            for layer, earlier in zip(step, previous, strict=True):
                x = layer(source, earlier, x)
            if index < self.rectified:
                x = torch.relu(x)
            elif self.leaky_slope is not None and index < len(layers) // self.num_planes - 1:
                x = F.leaky_relu(x, self.leaky_slope)
            if self.accumulate_weights:
                previous = tuple((*earlier, layer.conv.weight) for layer, earlier in zip(step, previous, strict=True))
        return x


def _planes(method: Method, num_planes: int, shift: float) -> list[Method]:
    """`method` once for each plane, with thresholds that start between -shift and shift."""
    if num_planes < 1:
        raise ValueError(f"num_planes must be at least 1, found {num_planes}")
    if num_planes == 1:
        return [method]
    if not method.skip:
        raise ValueError(f"num_planes {num_planes} adds up the layers of a step on the identity path: set skip to true")
    if not ACTIVATION_BINARIZERS[method.activation].has_threshold:
        able = [name for name, binarizer in ACTIVATION_BINARIZERS.items() if binarizer.has_threshold]
        raise ValueError(
            f"num_planes {num_planes} needs activations with a learned threshold ({', '.join(able)}), found "
            f"{method.activation!r}"
        )
    starts = [shift * (2 * plane / (num_planes - 1) - 1) for plane in range(num_planes)]
    return [replace(method, activation_options={**method.activation_options, "shift": start}) for start in starts]


class DepthwiseResidual(nn.Module):
    """y = x + PReLU(conv3x3(x)), depthwise and in full precision: C times fewer products than a convolution."""

    def __init__(self, *, num_feat: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_feat, num_feat, 3, padding=1, groups=num_feat)
        self.act = nn.PReLU(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.act(self.conv(x))
