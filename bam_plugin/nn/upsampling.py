"""R of y = R(M(E(x))): the upsamplers, by the names that users of SwinIR and HAT options know."""

from __future__ import annotations

from torch import nn

from bam_plugin.nn.layers import body_conv
from bam_plugin.nn.methods import Method

UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect")


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
    1.2 GMAC for the same output, which matters where the body is packed and the float tail is what remains.
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
