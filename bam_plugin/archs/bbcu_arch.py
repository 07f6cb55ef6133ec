"""BBCU: the network of Xia et al., Basic Binary Convolution Unit for Binarized Image Restoration Network (ICLR 2023).

    h = LeakyReLU(conv(k x));   h = body(h);   y = (conv(LeakyReLU(end(upsampler(h)))) + enlarged k x) / k

It is BasicSR's MSRResNet with a binary body without normalization and without a path around its blocks: each binary
convolution has its own (the method `bbcu`). The factor k on the input amplifies that path against the signs' branch. As
published there are two: BBCU-L, whose upsampler and closing convolution are full precision, and BBCU-M
(`binary_parts: [upsampler, end]`), in whose upsampler PixelShuffle of a binary convolution is added to the map enlarged
by nearest neighbours. Both agree with the authors' code (October 2022) but for the sign of 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.archs.options import NetworkOptions, takes
from bam_plugin.nn.layers import BinaryLayer
from bam_plugin.nn.methods import methods_of_parts
from bam_plugin.nn.options import ChainOptions
from bam_plugin.nn.upsampling import BinaryUpsampling

PARTS = ("upsampler", "end")
STAGES = {2: (2,), 3: (3,), 4: (2, 2)}


@dataclass(frozen=True, kw_only=True)
class BBCUOptions(ChainOptions, NetworkOptions):
    """The options of BBCU."""

    binarizer: str = "bbcu"
    """A name in bam_plugin.nn.METHODS for the body and the binary parts."""
    num_block: int = 16
    """Blocks of two binary convolutions."""
    amplification: float = 130.0
    """The factor k on images in [0, 1]."""
    output_scale: str | None = None
    """Learned factor after each binary convolution; None because RPReLU follows it."""
    latent_gain: float = 0.4
    """Factor on the start of the latent weights; 0.4 gives the E|W| of the authors' start."""


@ARCH_REGISTRY.register()
class BBCU(nn.Module):
    """RGB (N, num_in_ch, H, W) in [0, 1] -> (N, num_in_ch, H * upscale, W * upscale), for `upscale` 2, 3 or 4.

    The keywords are the fields of BBCUOptions. `binary_parts`: any of `upsampler`, `end`.
    """

    @takes(BBCUOptions)
    def __init__(self, options: BBCUOptions) -> None:
        super().__init__()
        num_feat = options.num_feat
        if options.upscale not in STAGES:
            raise ValueError(f"upscale must be one of {tuple(STAGES)}, found {options.upscale!r}")
        if options.num_in_ch != options.num_out_ch:
            raise ValueError(
                f"num_in_ch ({options.num_in_ch}) and num_out_ch ({options.num_out_ch}) must be equal in BBCU"
            )
        method = options.method()
        parts = methods_of_parts(options.binary_parts, PARTS, method)
        starts = {
            "output_scale": options.output_scale,
            "output_scale_init": options.output_scale_init,
            "latent_gain": options.latent_gain,
        }
        self.upscale = options.upscale
        self.amplification = options.amplification
        self.head = nn.Sequential(nn.Conv2d(options.num_in_ch, num_feat, 3, padding=1), nn.LeakyReLU(0.1))
        self.body = nn.Sequential(
            *(options.chain(num_feat=num_feat, num_convs=2, relu="between") for _ in range(options.num_block))
        )
        stages: list[nn.Module] = []
        for factor in STAGES[options.upscale]:
            if parts["upsampler"] is not None:
                stages.append(BinaryUpsampling(num_feat=num_feat, upscale=factor, method=method, **starts))
            else:
                conv = nn.Conv2d(num_feat, num_feat * factor**2, 3, padding=1)
                stages += [conv, nn.PixelShuffle(factor), nn.LeakyReLU(0.1)]
        self.upsampler = nn.Sequential(*stages)
        self.end = nn.Sequential(
            nn.Conv2d(num_feat, num_feat, 3, padding=1)
            if parts["end"] is None
            else BinaryLayer(in_channels=num_feat, out_channels=num_feat, method=method, **starts),
            nn.LeakyReLU(0.1),
        )
        self.tail = nn.Conv2d(num_feat, options.num_out_ch, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                module.weight.data.mul_(0.1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        x = x * self.amplification
        out = self.tail(self.end(self.upsampler(self.body(self.head(x)))))
        out = out + F.interpolate(x, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return out / self.amplification
