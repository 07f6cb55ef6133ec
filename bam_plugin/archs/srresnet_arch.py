"""SRResNet (Ledig et al., CVPR 2017), in full precision or with any binarizer in its residual blocks.

9x9 head, 16 residual blocks of two 3x3 convolutions with BatchNorm, a 3x3 convolution with BatchNorm and the long skip,
PixelShuffle upsampling, 9x9 tail. No convolution has a bias. A binary block has no rectifier. It keeps its
normalizations, which bring the range of a convolution to that of the identity path, unless the method has none (bbcu).
If each convolution
has an identity path of its own, the block has none: two would double the range from block to block.
"""

from __future__ import annotations

from dataclasses import dataclass

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.archs.options import NetworkOptions, takes
from bam_plugin.nn.layers import BinaryChain, body_conv
from bam_plugin.nn.methods import methods_of_parts
from bam_plugin.nn.options import ChainOptions

PARTS = ("head", "body_end", "upsampler", "tail")
STAGES = {2: (2,), 3: (3,), 4: (2, 2)}


class ResidualBlock(nn.Module):
    """x + BN(conv(PReLU(BN(conv(x))))), or a binary chain with its own identity paths or, without such, one around it.

    (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, *, num_feat: int, chain: BinaryChain | None = None) -> None:
        super().__init__()
        self.skip = chain is None or not chain.skip
        self.body = chain or nn.Sequential(
            nn.Conv2d(num_feat, num_feat, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_feat),
            nn.PReLU(),
            nn.Conv2d(num_feat, num_feat, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_feat),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.body(x) if self.skip else self.body(x)


@dataclass(frozen=True, kw_only=True)
class SRResNetOptions(ChainOptions, NetworkOptions):
    """The options of SRResNet. Each binary block is one accumulation group (the paper)."""

    num_block: int = 16
    """Residual blocks."""
    output_scale: str | None = None
    """Learned factor after each binary convolution; None because the normalization that follows has one."""


@ARCH_REGISTRY.register()
class SRResNet(nn.Module):
    """RGB (N, num_in_ch, H, W) in [0, 1] -> (N, num_out_ch, H * upscale, W * upscale), for `upscale` 2, 3 or 4.

    The keywords are the fields of SRResNetOptions. `binary_parts`: any of `head`, `body_end`, `upsampler`, `tail`.
    """

    @takes(SRResNetOptions)
    def __init__(self, options: SRResNetOptions) -> None:
        super().__init__()
        num_feat, upscale = options.num_feat, options.upscale
        if upscale not in STAGES:
            raise ValueError(f"upscale must be one of {tuple(STAGES)}, found {upscale!r}")
        method = options.method() if options.binarizer is not None else None
        parts = methods_of_parts(options.binary_parts, PARTS, method)

        def chain() -> BinaryChain | None:
            if method is None:
                return None
            return options.chain(num_feat=num_feat, num_convs=2, norm=method.norm is not False, relu="between")

        self.head = nn.Sequential(
            body_conv(options.num_in_ch, num_feat, 9, bias=False, method=parts["head"]), nn.PReLU()
        )
        self.body = nn.Sequential(*(ResidualBlock(num_feat=num_feat, chain=chain()) for _ in range(options.num_block)))
        self.body_end = nn.Sequential(
            body_conv(num_feat, num_feat, bias=False, method=parts["body_end"]), nn.BatchNorm2d(num_feat)
        )
        layers: list[nn.Module] = []
        for factor in STAGES[upscale]:
            layers += [
                body_conv(num_feat, num_feat * factor**2, bias=False, method=parts["upsampler"]),
                nn.PixelShuffle(factor),
                nn.PReLU(),
            ]
        self.upsampler = nn.Sequential(*layers)
        self.tail = body_conv(num_feat, options.num_out_ch, 9, bias=False, method=parts["tail"])

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        features = self.head(x)
        return self.tail(self.upsampler(self.body_end(self.body(features)) + features))
