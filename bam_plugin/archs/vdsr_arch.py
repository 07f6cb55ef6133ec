"""VDSR (Kim et al., CVPR 2016), in full precision or with any binarizer in its body.

MATLAB's bicubic interpolation enlarges the input inside the network, and 20 layers of 3x3 convolutions predict a
correction. The first and the last convolution are full precision. The 18 between them are the body. A binary body has
no rectifiers (a sign needs none), and the shift of its normalization takes the place of the bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.archs.options import NetworkOptions, takes
from bam_plugin.nn.layers import body_conv, rectifier
from bam_plugin.nn.methods import methods_of_parts
from bam_plugin.nn.options import ChainOptions
from bam_plugin.nn.upsampling import enlarge

PARTS = ("head", "tail")


@dataclass(frozen=True, kw_only=True)
class VDSROptions(ChainOptions, NetworkOptions):
    """The options of VDSR. num_in_ch and num_out_ch are equal, because the network corrects its enlarged input."""

    num_layers: int = 20
    """Convolutions in all, with head and tail."""
    group: int = 3
    """Convolutions in one accumulation group (the paper: 6 groups of 3); divides num_layers - 2."""
    skip: bool | None = True
    """Identity path around each convolution of a binary body. Without it 18 of them in sequence hardly train."""


@ARCH_REGISTRY.register()
class VDSR(nn.Module):
    """RGB (N, num_in_ch, H, W) in [0, 1] -> (N, num_in_ch, H * upscale, W * upscale), for any whole `upscale`.

    The keywords are the fields of VDSROptions. `binary_parts`: any of `head`, `tail`.
    """

    @takes(VDSROptions)
    def __init__(self, options: VDSROptions) -> None:
        super().__init__()
        num_in_ch, num_out_ch, num_feat = options.num_in_ch, options.num_out_ch, options.num_feat
        num_body, group = options.num_layers - 2, options.group
        if num_in_ch != num_out_ch:
            raise ValueError(f"num_in_ch ({num_in_ch}) and num_out_ch ({num_out_ch}) must be equal in VDSR")
        if num_body < 1 or num_body % group:
            raise ValueError(f"num_layers - 2 must be a multiple of group ({group}), found {num_body}")
        method = options.method() if options.binarizer is not None else None
        parts = methods_of_parts(options.binary_parts, PARTS, method)
        self.upscale = options.upscale
        self.head = nn.Sequential(body_conv(num_in_ch, num_feat, bias=True, method=parts["head"]), rectifier(method))
        if method is None:
            layers = [
                layer
                for _ in range(num_body)
                for layer in (nn.Conv2d(num_feat, num_feat, 3, padding=1), nn.ReLU(inplace=True))
            ]
            self.body = nn.Sequential(*layers)
        else:
            self.body = nn.Sequential(
                *(options.chain(num_feat=num_feat, num_convs=group) for _ in range(num_body // group))
            )
        self.tail = body_conv(num_feat, num_out_ch, bias=True, method=parts["tail"])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.tail, nn.Conv2d):
            # The network starts close to the interpolation that it corrects.
            nn.init.normal_(self.tail.weight, std=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        enlarged = enlarge(x, mode="bicubic", factor=self.upscale)
        return enlarged + self.tail(self.body(self.head(enlarged)))
