"""The upsamplers, R of y = R(M(E(x))), by the names that users of SwinIR and HAT know."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bam_plugin.nn.layers import BinaryLayer, body_conv
from bam_plugin.nn.methods import Method

UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect")
SKIPS = ("bilinear", "bicubic")
MATLAB = -0.5  # the coefficient of its bicubic kernel


def check_global_skip(mode: str | None, *, num_in_ch: int, num_out_ch: int) -> None:
    """Raise ValueError unless `mode` can be that of global_skip in a network of these channels."""
    if mode is not None and mode not in SKIPS:
        raise ValueError(f"global_skip must be None or one of {SKIPS}, found {mode!r}")
    if mode is not None and num_in_ch != num_out_ch:
        raise ValueError(
            f"global_skip adds the input to the output: num_in_ch ({num_in_ch}) and num_out_ch ({num_out_ch}) must "
            "be equal; set global_skip to None"
        )


@fx.wrap  # one operation of a packed graph
def bicubic(x: Tensor, factor: int, coefficient: float = MATLAB) -> Tensor:
    """Enlarge x (N, C, H, W) by bicubic interpolation: along x first, then along y.

    `coefficient` is the a of Keys' kernel ("Cubic convolution interpolation", 1981): -0.5 in MATLAB's imresize, whose
    PSNR the papers state; torch's own interpolation has -0.75. Pixels beyond the border are those at the border.
    """
    return _enlarge(_enlarge(x, 3, factor, coefficient), 2, factor, coefficient)


def _enlarge(x: Tensor, axis: int, factor: int, coefficient: float) -> Tensor:
    """Enlarge along one axis. The terms are added from the lowest input index to the highest."""
    size, phases = x.shape[axis], []
    padded = F.pad(x, (2, 2, 0, 0) if axis == 3 else (0, 0, 2, 2), mode="replicate")
    for phase in range(factor):
        position = (phase + 0.5) / factor - 0.5
        base = math.floor(position)
        terms = [
            padded.narrow(axis, base + offset + 2, size) * _keys(abs(base + offset - position), coefficient)
            for offset in (-1, 0, 1, 2)
        ]
        phases.append(terms[0] + terms[1] + terms[2] + terms[3])
    return torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1)


def _keys(distance: float, a: float) -> float:
    """Keys' kernel at a distance in pixels, rounded to float32."""
    if distance <= 1:
        weight = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    else:
        weight = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return float(np.float32(weight))


def enlarge(x: Tensor, *, mode: str, factor: int) -> Tensor:
    """X (N, C, H, W) -> (N, C, H * factor, W * factor) by `bilinear` or MATLAB's `bicubic` interpolation."""
    if mode == "bicubic":
        return bicubic(x, factor)
    return F.interpolate(x, scale_factor=factor, mode=mode, align_corners=False)


def global_skip(out: Tensor, x: Tensor, *, mode: str | None, upscale: int) -> Tensor:
    """The sum of `out` (N, C, H * upscale, W * upscale) and the enlarged `x` (N, C, H, W)."""
    return out if mode is None else out + enlarge(x, mode=mode, factor=upscale)


class BinaryUpsampling(nn.Module):
    """PixelShuffle(layer(x)) + x enlarged by nearest neighbours   (Xia et al., BBCU, ICLR 2023).

    (N, C, H, W) -> (N, C, H * upscale, W * upscale); the binary layer has C `upscale`^2 filters. Without an identity
    path in the method, the enlarged x is left out.
    """

    def __init__(self, *, num_feat: int, upscale: int, method: Method, **options: Any) -> None:
        """`options` go to BinaryLayer."""
        super().__init__()
        self.upscale = upscale
        self.layer = BinaryLayer(in_channels=num_feat, out_channels=num_feat * upscale**2, method=method, **options)
        self.skip = method.skip

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge a map."""
        out = F.pixel_shuffle(self.layer(x), self.upscale)
        return out + F.interpolate(x, scale_factor=self.upscale, mode="nearest") if self.skip else out


def make_upsampler(
    kind: str,
    *,
    num_feat: int,
    num_out_ch: int,
    upscale: int,
    stage_method: Method | None = None,
    tail_method: Method | None = None,
) -> nn.Sequential:
    """(N, num_feat, H, W) -> (N, num_out_ch, H * upscale, W * upscale).

    `pixelshuffle` (the paper): a convolution num_feat -> 4 num_feat and PixelShuffle(2) per factor 2 (9 num_feat and
    PixelShuffle(3) for x3), then a 3x3 convolution num_feat -> num_out_ch at full size: 26 GMAC for x4 at 1280x720
    with 48 channels.
    `pixelshuffledirect` (light): one 3x3 convolution num_feat -> num_out_ch * upscale^2 and PixelShuffle(upscale):
    1.2 GMAC for the same output. That matters if the body is packed and the float tail is the rest.
    stage_method, tail_method: binarize the convolutions before the PixelShuffles, and the last convolution (which is
    the only one of `pixelshuffledirect`); None keeps them full precision.
    """
    if kind not in UPSAMPLERS:
        raise ValueError(f"upsampler must be one of {UPSAMPLERS}, found {kind!r}")
    if kind == "pixelshuffledirect":
        return nn.Sequential(
            body_conv(num_feat, num_out_ch * upscale**2, bias=True, method=tail_method), nn.PixelShuffle(upscale)
        )
    stages = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
    if upscale not in stages:
        raise ValueError(f"upscale must be one of {tuple(stages)}, found {upscale!r}")
    layers: list[nn.Module] = []
    for factor in stages[upscale]:
        layers += [body_conv(num_feat, num_feat * factor**2, bias=True, method=stage_method), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers, body_conv(num_feat, num_out_ch, bias=True, method=tail_method))
