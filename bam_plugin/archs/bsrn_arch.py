"""BSRN, the network that the paper designs around bit accumulation: y = R(M(E(x))).

E = conv3x3 + ReLU. M = num_hpb binary HPB blocks of num_lb LB blocks and one full-precision 3x3 convolution at the end,
which is in the paper's printed parameter count. R = upsampler. Only M is binarized.

The figure, read literally, does not train. Without an identity path around the 3x3 convolutions, 120 binary
convolutions in sequence never leave the mean colour. With one, and with all factors b at 1, every LB block triples the
scale. So the defaults are a trainable reading, and LITERAL has the options of the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.archs.options import NetworkOptions, takes
from bam_plugin.nn.blocks import HPBBlock
from bam_plugin.nn.layers import body_conv, rectifier
from bam_plugin.nn.methods import methods_of_parts
from bam_plugin.nn.options import ConvOptions
from bam_plugin.nn.upsampling import check_global_skip, global_skip, make_upsampler

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


@dataclass(frozen=True, kw_only=True)
class BSRNOptions(ConvOptions, NetworkOptions):
    """The options of BSRN. The defaults are the trainable reading."""

    binarizer: str = "bam"
    """A name in bam_plugin.nn.METHODS whose two binarizers take the place of BAM's; the paths around the convolutions
    stay those of the LB block. Only `bam` accumulates weights. Full-precision activations are refused, because
    the body would have no nonlinearity."""
    num_feat: int = 48
    """Channels of the body (48: the text and the printed parameter count; the figure says 64)."""
    num_hpb: int = 20
    """HPB blocks."""
    num_lb: int = 2
    """LB blocks in each HPB block."""
    upsampler: str = "pixelshuffle"
    """`pixelshuffle` (paper) or `pixelshuffledirect` (1/20 of its cost), see make_upsampler."""
    alpha: str = "one"
    """`one`, `learned` or `solved`: the factors of the weight accumulation (BAMWeight)."""
    weight_gradient: str = "latent"
    """The weights that get the gradient of accumulated weights (BAMWeight)."""
    activation_estimator: str = "clip"
    """Gradient of the activations' sign, a name in bam_plugin.nn.ESTIMATORS (where the activation side is `bn_sign`;
    the other sides take it from activation_options)."""
    identity: bool = True
    """Identity path around each 3x3 convolution, see LBBlock."""
    accumulate_activations: bool = True
    """The terms b1 a1 and b2 a2 of LBBlock."""
    beta: str = "spatial"
    """Mode of the factors b1 and b2, see ActivationScale."""
    beta_statistic: str = "mean_abs"
    """Statistic of the factors."""
    beta_init: Sequence[float] = (0.0, 0.0)
    """Starts of the two factors."""
    beta_offset: Sequence[float] = (0.5, 1.0)
    """Offsets of the two factors."""
    long_range: bool = True
    """Accumulate the 3x3 filters over the LB blocks of an HPB block."""
    short_range: bool = True
    """Accumulate the filters of the two 1x1 convolutions."""
    global_skip: str | None = "bilinear"
    """`bilinear` or `bicubic` (the input, enlarged, is added to the output) or None (the
    figure)."""


@ARCH_REGISTRY.register()
class BSRN(nn.Module):
    """Binary super-resolution network; RGB (N, num_in_ch, H, W) in [0, 1] -> (N, num_out_ch, H * upscale, W * upscale).

    The keywords are the fields of BSRNOptions; `upscale` is 2, 3 or 4. `binary_parts`: any of `head`, `body_end`,
    `upsampler`, `tail`. `BSRN(**LITERAL)` is the figure as printed (1,215,059 parameters at x4: 1,214,979 + 2 per LB
    block).
    """

    @takes(BSRNOptions)
    def __init__(self, options: BSRNOptions) -> None:
        super().__init__()
        num_in_ch, num_out_ch, num_feat = options.num_in_ch, options.num_out_ch, options.num_feat
        method = options.method()
        if method.float_activations:
            raise ValueError(
                "activation_binarizer 'float' leaves the body of BSRN without a nonlinearity; use SRResNet or VDSR for "
                "binary weights with full-precision activations"
            )
        parts = methods_of_parts(options.binary_parts, PARTS, method)
        conv_options = method.conv_options()
        conv_options["weight_options"].pop("group_index", None)
        if method.activation == "bn_sign":
            conv_options["activation_options"].setdefault("estimator", options.activation_estimator)

        check_global_skip(options.global_skip, num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        self.upscale = options.upscale
        self.global_skip = options.global_skip
        self.head = nn.Sequential(body_conv(num_in_ch, num_feat, bias=True, method=parts["head"]), rectifier(method))
        self.body = nn.Sequential(
            *(
                HPBBlock(
                    num_feat=num_feat,
                    num_lb=options.num_lb,
                    identity=options.identity,
                    accumulate_activations=options.accumulate_activations,
                    beta=options.beta,
                    beta_statistic=options.beta_statistic,
                    beta_init=options.beta_init,
                    beta_offset=options.beta_offset,
                    long_range=options.long_range,
                    short_range=options.short_range,
                    alpha=options.alpha,
                    weight_gradient=options.weight_gradient,
                    conv_options={
                        **conv_options,
                        "output_scale": options.output_scale,
                        "output_scale_init": options.output_scale_init,
                        "latent_gain": options.latent_gain,
                    },
                )
                for _ in range(options.num_hpb)
            )
        )
        self.body_end = body_conv(num_feat, num_feat, bias=True, method=parts["body_end"])
        self.upsampler = make_upsampler(
            options.upsampler,
            num_feat=num_feat,
            num_out_ch=num_out_ch,
            upscale=options.upscale,
            stage_method=parts["upsampler"],
            tail_method=parts["tail"],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve a batch."""
        out = self.upsampler(self.body_end(self.body(self.head(x))))
        return global_skip(out, x, mode=self.global_skip, upscale=self.upscale)
