"""The blocks of BSRN: LBBlock (a local block of three binary convs) and HPBBlock (LB blocks in sequence).

The LB block of the paper's figure is a 3x3 and two 1x1 convolutions, all C -> C:

    a1 = conv3(x);  a2 = conv1_a(a1) + b1 a1;  out = conv1_b(a2) + b1 a1 + b2 a2

Short-range accumulation joins the activations (factors b1, b2) and the filters of the two 1x1 convolutions. Long-range
accumulation joins the filters of the 3x3 convolutions across the LB blocks of one HPB block.

Without accumulation of activations (the paper's A2) the three convolutions follow each other:

    a1 = conv3(x);  a2 = conv1_a(a1);  out = conv1_b(a2)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from bam_plugin.nn.accumulation import ActivationScale
from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.nn.weights import WEIGHT_BINARIZERS


class LBBlock(nn.Module):
    """Local binary block, (N, C, H, W) -> (N, C, H, W).

    Args:
        num_feat: channels C.
        identity: add the input to the 3x3 convolution's result, a1 = conv3(x) + x. The figure shows no such path
            (False). Without it deep networks do not train (see docs/training.md). Without accumulation of activations
            each of the three convolutions has such a path.
        accumulate_activations: whether there are the terms with b1 and b2; without them the options of beta do nothing.
        beta, beta_statistic, beta_init, beta_offset: mode, statistic and, for b1 and b2, the trained scalar's start
            and the fixed offset of ActivationScale. With identity, offsets (0.5, 1) and starts (0, 0) the block begins
            as out = x + conv3(x) + conv1_a(a1) + conv1_b(a2), a plain residual chain.
        long_range: accumulate the 3x3 filters over the earlier LB blocks of the HPB block.
        short_range: accumulate the filters of the two 1x1 convolutions.
        position: index of this block in its HPB block, 0-based.
        alpha, weight_gradient: the options `alpha` and `gradient` of the weight binarizer, where it has them (bam).
        conv_options: further keywords of the three BinaryConv2d.
    """

    def __init__(
        self,
        *,
        num_feat: int,
        identity: bool = True,
        accumulate_activations: bool = True,
        beta: str = "spatial",
        beta_statistic: str = "mean_abs",
        beta_init: Sequence[float] = (0.0, 0.0),
        beta_offset: Sequence[float] = (0.5, 1.0),
        long_range: bool = True,
        short_range: bool = True,
        position: int = 0,
        alpha: str = "one",
        weight_gradient: str = "latent",
        conv_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.identity = identity
        self.long_range = long_range
        self.short_range = short_range

        options = dict(conv_options or {})
        taken = inspect.signature(WEIGHT_BINARIZERS[options.get("weight_binarizer", "bam")]).parameters

        def conv(kernel_size: int, group_index: int) -> BinaryConv2d:
            weight_options = {"alpha": alpha, "gradient": weight_gradient, "group_index": group_index}
            weight_options = {name: value for name, value in weight_options.items() if name in taken}
            return BinaryConv2d(
                in_channels=num_feat,
                out_channels=num_feat,
                kernel_size=kernel_size,
                **{**options, "weight_options": {**weight_options, **options.get("weight_options", {})}},
            )

        self.conv3 = conv(3, position if long_range else 0)
        self.conv1_a = conv(1, 0)
        self.conv1_b = conv(1, 1 if short_range else 0)
        self.beta1, self.beta2 = (
            ActivationScale(mode=beta, statistic=beta_statistic, init=beta_init[n], offset=beta_offset[n])
            if accumulate_activations
            else None
            for n in range(2)
        )

    def forward(self, x: Tensor, previous: Sequence[Tensor] = ()) -> Tensor:
        """`previous`: latent 3x3 weights of the earlier LB blocks of the HPB block."""
        a1 = self.conv3(x, previous if self.long_range else ())
        if self.identity:
            a1 = a1 + x
        earlier = (self.conv1_a.weight,) if self.short_range else ()
        if self.beta1 is None or self.beta2 is None:
            a2 = self.conv1_a(a1)
            a2 = a2 + a1 if self.identity else a2
            out = self.conv1_b(a2, earlier)
            return out + a2 if self.identity else out
        weighted1 = self.beta1(a1)
        a2 = self.conv1_a(a1) + weighted1
        return (self.conv1_b(a2, earlier) + weighted1) + self.beta2(a2)


class HPBBlock(nn.Module):
    """`num_lb` LB blocks in sequence, with long-range accumulation of their 3x3 filters; `options` go to LBBlock."""

    def __init__(self, *, num_feat: int, num_lb: int = 2, **options: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            LBBlock(num_feat=num_feat, position=position, **options) for position in range(num_lb)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        previous: tuple[Tensor, ...] = ()
        for block in cast("Iterable[LBBlock]", self.blocks):
            x = block(x, previous)
            previous = (*previous, block.conv3.weight)
        return x
