"""VDSR (Kim et al., CVPR 2016), in full precision or with any binarizer in its body.

The input is enlarged by bicubic interpolation inside the network; 20 layers of 3x3 convolutions predict what is added
to it. The first and the last convolution are full precision; the 18 between them are the body. A binary body has no
rectifiers (a sign needs none), and the shift of its normalization takes the place of the bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.nn.layers import BinaryChain, body_conv
from bam_plugin.nn.methods import make_method, methods_of_parts

PARTS = ("head", "tail")


@ARCH_REGISTRY.register()
class VDSR(nn.Module):
    """RGB (N, num_in_ch, H, W) in [0, 1] -> (N, num_in_ch, H * upscale, W * upscale).

    Args:
        num_in_ch, num_out_ch: channels of the images; equal, because the network predicts a residual.
        num_feat: channels of the body.
        num_layers: convolutions in all, with head and tail.
        upscale: any integer factor.
        binarizer: a name in bam_plugin.nn.METHODS for the body, None for full precision. The options below are for a
            binary body only.
        weight_binarizer, activation_binarizer: replace one side of the method (`activation_binarizer: float` keeps
            the activations full precision).
        weight_options, activation_options: keywords of the two binarizers.
        group: convolutions in one accumulation group (the paper: 6 groups of 3); divides num_layers - 2.
        accumulate_weights, accumulate_activations: eq. 3 and eq. 9, for `bam`; None follows the method.
        beta, beta_statistic, beta_init, beta_offset: factors b of eq. 9, see BinaryChain.
        skip: identity path around each convolution of the body. None follows the method; without one, 18 binary
            convolutions in sequence hardly train.
        output_scale, output_scale_init: learned factor after each binary convolution, see BinaryConv2d.
        latent_gain: see BinaryConv2d.
        binary_parts: any of `head`, `tail`, binarized too.
    """

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_layers: int = 20,
        upscale: int = 4,
        binarizer: str | None = None,
        weight_binarizer: str | None = None,
        weight_options: Mapping[str, Any] | None = None,
        activation_binarizer: str | None = None,
        activation_options: Mapping[str, Any] | None = None,
        group: int = 3,
        accumulate_weights: bool = True,
        accumulate_activations: bool | None = None,
        beta: str = "spatial",
        beta_statistic: str = "mean_abs",
        beta_init: float = 1.0,
        beta_offset: float | None = None,
        skip: bool | None = True,
        output_scale: str | None = "channel",
        output_scale_init: float = 0.1,
        latent_gain: float = 0.1,
        binary_parts: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if num_in_ch != num_out_ch:
            raise ValueError(f"num_in_ch ({num_in_ch}) and num_out_ch ({num_out_ch}) must be equal in VDSR")
        num_body = num_layers - 2
        if num_body < 1 or num_body % group:
            raise ValueError(f"num_layers - 2 must be a multiple of group ({group}), found {num_body}")
        method = None
        if binarizer is not None:
            method = make_method(
                binarizer,
                weight=weight_binarizer,
                weight_options=weight_options,
                activation=activation_binarizer,
                activation_options=activation_options,
                accumulate=accumulate_activations,
                skip=skip,
            )
        parts = methods_of_parts(binary_parts, PARTS, method)
        self.upscale = upscale
        self.head = nn.Sequential(
            body_conv(num_in_ch, num_feat, bias=True, method=parts["head"]), nn.ReLU(inplace=True)
        )
        if method is None:
            layers = [
                layer
                for _ in range(num_body)
                for layer in (nn.Conv2d(num_feat, num_feat, 3, padding=1), nn.ReLU(inplace=True))
            ]
            self.body = nn.Sequential(*layers)
        else:
            self.body = nn.Sequential(
                *(
                    BinaryChain(
                        num_feat=num_feat,
                        num_convs=group,
                        method=method,
                        accumulate_weights=accumulate_weights,
                        beta=beta,
                        beta_statistic=beta_statistic,
                        beta_init=beta_init,
                        beta_offset=beta_offset,
                        output_scale=output_scale,
                        output_scale_init=output_scale_init,
                        latent_gain=latent_gain,
                    )
                    for _ in range(num_body // group)
                )
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
        enlarged = F.interpolate(x, scale_factor=self.upscale, mode="bicubic", align_corners=False)
        return enlarged + self.tail(self.body(self.head(enlarged)))
