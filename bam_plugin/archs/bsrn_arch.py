"""BSRN, the network that the paper designs around bit accumulation: y = R(M(E(x))).

E = conv3x3 + ReLU; M = num_hpb HPB blocks of num_lb LB blocks, binary, closed by one full-precision 3x3 convolution
(it is in the paper's printed parameter count); R = upsampler. Only M is binarized.

The figure read literally does not train: without an identity path around the 3x3 convolutions 120 binary convolutions
in sequence never leave the mean colour, and with one and all factors b at 1 every LB block triples the scale. So the
defaults are a trainable reading, and LITERAL holds the options that give the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.nn.blocks import HPBBlock
from bam_plugin.nn.layers import body_conv
from bam_plugin.nn.methods import make_method, methods_of_parts
from bam_plugin.nn.upsampling import make_upsampler

PARTS = ("head", "body_end", "upsampler", "tail")
# The same as the method `literal` of options/base/bsrn.yml.
LITERAL: dict[str, Any] = {
    "alpha": "one",
    "identity": False,
    "beta": "spatial",
    "beta_init": (1.0, 1.0),
    "beta_offset": (0.0, 0.0),
    "output_scale": None,
    "latent_gain": 1.0,
    "global_skip": None,
    "upsampler": "pixelshuffle",
}


@ARCH_REGISTRY.register()
class BSRN(nn.Module):
    """Binary super-resolution network; RGB (N, num_in_ch, H, W) in [0, 1] -> (N, num_out_ch, H * upscale, W * upscale).

    The first eight options describe the paper's network, the rest what it leaves open. The defaults are the trainable
    reading; `BSRN(**LITERAL)` is the figure as printed (1,215,059 parameters at x4: 1,214,979 + 2 per LB block).

    Args:
        num_in_ch, num_out_ch: channels of the input and the output image.
        num_feat: channels of the body (48: the text and the printed parameter count; the figure says 64).
        num_hpb, num_lb: HPB blocks, and LB blocks in each.
        upscale: 2, 3 or 4.
        upsampler: `pixelshuffle` (paper) or `pixelshuffledirect` (1/20 of its cost), see make_upsampler.
        alpha: `one`, `learned` or `solved`, the factors of the weight accumulation (BAMWeight).
        identity, accumulate_activations, beta, beta_statistic, beta_init, beta_offset, long_range, short_range,
            weight_gradient: see LBBlock.
        activation_estimator: gradient of the activations' sign, a name in bam_plugin.nn.ESTIMATORS (where the
            activation side is `bn_sign`; the other sides take it from activation_options).
        output_scale, output_scale_init: learned factor after each binary convolution (`channel`, `scalar` or None),
            see BinaryConv2d.
        latent_gain: factor on the start of the latent weights, see BinaryConv2d.
        global_skip: `bilinear` or `bicubic` (the input, enlarged by torch's interpolation, is added to the output) or
            None (the figure).
        binarizer: a name in bam_plugin.nn.METHODS whose two binarizers take the place of BAM's; the paths around the
            convolutions stay those of the LB block. Weights are accumulated with `bam` only.
        weight_binarizer, weight_options, activation_binarizer, activation_options: replace one side of the method.
            Full-precision activations are refused: the body would have no nonlinearity.
        binary_parts: any of `head`, `body_end`, `upsampler`, `tail`, binarized too.
    """

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 48,
        num_hpb: int = 20,
        num_lb: int = 2,
        upscale: int = 4,
        upsampler: str = "pixelshuffle",
        alpha: str = "one",
        identity: bool = True,
        accumulate_activations: bool = True,
        beta: str = "spatial",
        beta_statistic: str = "mean_abs",
        beta_init: Sequence[float] = (0.0, 0.0),
        beta_offset: Sequence[float] = (0.5, 1.0),
        long_range: bool = True,
        short_range: bool = True,
        weight_gradient: str = "latent",
        activation_estimator: str = "clip",
        output_scale: str | None = "channel",
        output_scale_init: float = 0.1,
        latent_gain: float = 0.1,
        global_skip: str | None = "bilinear",
        binarizer: str = "bam",
        weight_binarizer: str | None = None,
        weight_options: Mapping[str, Any] | None = None,
        activation_binarizer: str | None = None,
        activation_options: Mapping[str, Any] | None = None,
        binary_parts: Sequence[str] = (),
    ) -> None:
        super().__init__()
        method = make_method(
            binarizer,
            weight=weight_binarizer,
            weight_options=weight_options,
            activation=activation_binarizer,
            activation_options=activation_options,
        )
        if method.float_activations:
            raise ValueError(
                "activation_binarizer 'float' leaves the body of BSRN without a nonlinearity; use SRResNet or VDSR for "
                "binary weights with full-precision activations"
            )
        parts = methods_of_parts(binary_parts, PARTS, method)
        conv_options = method.conv_options()
        conv_options["weight_options"].pop("group_index", None)
        if method.activation == "bn_sign":
            conv_options["activation_options"].setdefault("estimator", activation_estimator)

        if global_skip not in (None, "bilinear", "bicubic"):
            raise ValueError(f"global_skip must be None, 'bilinear' or 'bicubic', found {global_skip!r}")
        if global_skip is not None and num_in_ch != num_out_ch:
            raise ValueError(
                f"global_skip adds the input to the output: num_in_ch ({num_in_ch}) and num_out_ch ({num_out_ch}) must "
                "be equal; set global_skip to None"
            )
        self.upscale = upscale
        self.global_skip = global_skip
        self.head = nn.Sequential(body_conv(num_in_ch, num_feat, bias=True, method=parts["head"]), nn.ReLU())
        self.body = nn.Sequential(
            *(
                HPBBlock(
                    num_feat=num_feat,
                    num_lb=num_lb,
                    identity=identity,
                    accumulate_activations=accumulate_activations,
                    beta=beta,
                    beta_statistic=beta_statistic,
                    beta_init=beta_init,
                    beta_offset=beta_offset,
                    long_range=long_range,
                    short_range=short_range,
                    alpha=alpha,
                    weight_gradient=weight_gradient,
                    conv_options={
                        **conv_options,
                        "output_scale": output_scale,
                        "output_scale_init": output_scale_init,
                        "latent_gain": latent_gain,
                    },
                )
                for _ in range(num_hpb)
            )
        )
        self.body_end = body_conv(num_feat, num_feat, bias=True, method=parts["body_end"])
        self.upsampler = make_upsampler(
            upsampler,
            num_feat=num_feat,
            num_out_ch=num_out_ch,
            upscale=upscale,
            stage_method=parts["upsampler"],
            tail_method=parts["tail"],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        out = self.upsampler(self.body_end(self.body(self.head(x))))
        if self.global_skip is None:
            return out
        return out + F.interpolate(x, scale_factor=self.upscale, mode=self.global_skip, align_corners=False)
