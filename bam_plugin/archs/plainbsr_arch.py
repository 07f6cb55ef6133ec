"""PlainBSR, a network designed for the packed engine: a thin full-precision path beside a plain binary body.

    s = stem(x)                                    `num_stem` 3x3 convolutions of `stem_feat` channels, PReLU
    h = body(head(s))                              binary 3x3 layers with an identity path around each
    y = PixelShuffle(tail(h) + stem_tail(s)) + enlarged x

Each float operation stands where it gives much for its time: 3x3 convolutions are thin, and no full-precision
convolution closes the body. docs/lab/networks.md has the trials.

The body is a sequence of groups, each a BinaryChain and, with `depthwise`, a DepthwiseResidual behind it. A group is an
accumulation group of BAM. Accumulation is off by default, because the identity path already carries the sum of eq. 9.
"""

from __future__ import annotations

from dataclasses import dataclass

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.archs.options import NetworkOptions, takes
from bam_plugin.nn.layers import DepthwiseResidual
from bam_plugin.nn.options import ChainOptions
from bam_plugin.nn.upsampling import check_global_skip, global_skip


@dataclass(frozen=True, kw_only=True)
class PlainBSROptions(ChainOptions, NetworkOptions):
    """The options of PlainBSR."""

    binarizer: str = "bam"
    """A name in bam_plugin.nn.METHODS for the body."""
    num_group: int = 12
    """Groups of the body."""
    num_convs: int = 1
    """Binary layers of a group, one behind the other."""
    num_planes: int = 1
    """Layers beside each other in place of each layer, with different thresholds, see BinaryChain."""
    plane_shift: float = 0.7
    """Distance of the planes' thresholds from the middle at the start, see BinaryChain."""
    depthwise: bool = False
    """A full-precision depthwise convolution behind each group, see DepthwiseResidual."""
    num_stem: int = 3
    """Full-precision 3x3 convolutions of the stem."""
    stem_feat: int = 16
    """Channels of the stem."""
    head_kernel: int = 3
    """Kernel of the convolution from the stem to the body."""
    tail_kernel: int = 1
    """Kernel of the convolution from the body to the output; that from the stem is 3."""
    global_skip: str | None = "bilinear"
    """`bilinear` or `bicubic`: the enlarged input is added to the output; or None."""
    accumulate_weights: bool = False
    """Accumulate the weights of a group (eq. 3), if the weight binarizer can."""
    accumulate_activations: bool | None = False
    """Accumulate the activations of a group (eq. 9); None follows the method."""
    beta_init: float = 0.0
    """Start of the factors b."""
    beta_offset: float | None = 1.0
    """Offset of the factors b."""
    skip: bool | None = True
    """Identity path around each binary convolution; None follows the method."""


@ARCH_REGISTRY.register()
class PlainBSR(nn.Module):
    """RGB (N, num_in_ch, H, W) in [0, 1] -> (N, num_out_ch, H * upscale, W * upscale).

    The keywords are the fields of PlainBSROptions. Only the body is binarized.
    """

    @takes(PlainBSROptions)
    def __init__(self, options: PlainBSROptions) -> None:
        super().__init__()
        if options.binary_parts:
            raise ValueError(f"binary_parts: PlainBSR has none outside of its body, found {list(options.binary_parts)}")
        if options.num_stem < 1:
            raise ValueError(f"num_stem must be at least 1, found {options.num_stem}")
        check_global_skip(options.global_skip, num_in_ch=options.num_in_ch, num_out_ch=options.num_out_ch)
        self.upscale = options.upscale
        self.global_skip = options.global_skip
        num_feat, stem_feat = options.num_feat, options.stem_feat
        stem: list[nn.Module] = []
        for channels in (options.num_in_ch, *[stem_feat] * (options.num_stem - 1)):
            stem += [nn.Conv2d(channels, stem_feat, 3, padding=1), nn.PReLU(stem_feat)]
        self.stem = nn.Sequential(*stem)
        self.head = _conv(stem_feat, num_feat, options.head_kernel)
        body: list[nn.Module] = []
        for _ in range(options.num_group):
            body.append(
                options.chain(
                    num_feat=num_feat,
                    num_convs=options.num_convs,
                    num_planes=options.num_planes,
                    plane_shift=options.plane_shift,
                )
            )
            if options.depthwise:
                body.append(DepthwiseResidual(num_feat=num_feat))
        self.body = nn.Sequential(*body)
        num_sub_pixels = options.num_out_ch * options.upscale**2
        self.tail = _conv(num_feat, num_sub_pixels, options.tail_kernel)
        self.stem_tail = _conv(stem_feat, num_sub_pixels, 3)
        self.shuffle = nn.PixelShuffle(options.upscale)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        stem = self.stem(x)
        body = self.body(self.head(stem))
        out = self.shuffle(self.tail(body) + self.stem_tail(stem))
        return global_skip(out, x, mode=self.global_skip, upscale=self.upscale)


def _conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """A full-precision convolution that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
