"""SRResNet (Ledig et al., CVPR 2017), in full precision or with any binarizer in its residual blocks.

9x9 head, 16 residual blocks of two 3x3 convolutions with BatchNorm, a 3x3 convolution with BatchNorm and the long skip,
PixelShuffle upsampling, 9x9 tail; no convolution has a bias. A binary block keeps its normalizations (they bring the
convolution's range to that of the identity path) and has no rectifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.nn.layers import BinaryChain, body_conv
from bam_plugin.nn.methods import make_method, methods_of_parts

PARTS = ("head", "body_end", "upsampler", "tail")
STAGES = {2: (2,), 3: (3,), 4: (2, 2)}


class ResidualBlock(nn.Module):
    """x + BN(conv(PReLU(BN(conv(x))))), or x + chain(x) for a binary chain; (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, *, num_feat: int, chain: BinaryChain | None = None) -> None:
        super().__init__()
        self.body = chain or nn.Sequential(
            nn.Conv2d(num_feat, num_feat, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_feat),
            nn.PReLU(),
            nn.Conv2d(num_feat, num_feat, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_feat),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.body(x)


@ARCH_REGISTRY.register()
class SRResNet(nn.Module):
    """RGB (N, num_in_ch, H, W) in [0, 1] -> (N, num_out_ch, H * upscale, W * upscale).

    Args:
        num_in_ch, num_out_ch: channels of the images.
        num_feat: channels of the body.
        num_block: residual blocks.
        upscale: 2, 3 or 4.
        binarizer: a name in bam_plugin.nn.METHODS for the residual blocks, None for full precision. The options below
            are for binary blocks only. Each block is one accumulation group (the paper).
        weight_binarizer, activation_binarizer: replace one side of the method (`activation_binarizer: float` keeps
            the activations full precision, Table 5).
        weight_options, activation_options: keywords of the two binarizers.
        accumulate_weights, accumulate_activations: eq. 3 and eq. 9, for `bam`; None follows the method.
        beta, beta_statistic, beta_init, beta_offset: factors b of eq. 9, see BinaryChain.
        skip: identity path around each convolution inside a block; None follows the method.
        output_scale, output_scale_init: learned factor after each binary convolution, see BinaryConv2d; None because
            the normalization that follows has one.
        latent_gain: see BinaryConv2d.
        binary_parts: any of `head`, `body_end`, `upsampler`, `tail`, binarized too.
    """

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
        binarizer: str | None = None,
        weight_binarizer: str | None = None,
        weight_options: Mapping[str, Any] | None = None,
        activation_binarizer: str | None = None,
        activation_options: Mapping[str, Any] | None = None,
        accumulate_weights: bool = True,
        accumulate_activations: bool | None = None,
        beta: str = "spatial",
        beta_statistic: str = "mean_abs",
        beta_init: float = 1.0,
        beta_offset: float | None = None,
        skip: bool | None = None,
        output_scale: str | None = None,
        output_scale_init: float = 0.1,
        latent_gain: float = 0.1,
        binary_parts: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if upscale not in STAGES:
            raise ValueError(f"upscale must be one of {tuple(STAGES)}, found {upscale!r}")
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

        def chain() -> BinaryChain | None:
            if method is None:
                return None
            return BinaryChain(
                num_feat=num_feat,
                num_convs=2,
                method=method,
                accumulate_weights=accumulate_weights,
                beta=beta,
                beta_statistic=beta_statistic,
                beta_init=beta_init,
                beta_offset=beta_offset,
                norm=True,
                relu="between",
                output_scale=output_scale,
                output_scale_init=output_scale_init,
                latent_gain=latent_gain,
            )

        self.head = nn.Sequential(body_conv(num_in_ch, num_feat, 9, bias=False, method=parts["head"]), nn.PReLU())
        self.body = nn.Sequential(*(ResidualBlock(num_feat=num_feat, chain=chain()) for _ in range(num_block)))
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
        self.tail = body_conv(num_feat, num_out_ch, 9, bias=False, method=parts["tail"])

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        features = self.head(x)
        return self.tail(self.upsampler(self.body_end(self.body(features)) + features))
