"""The options of the binary convolutions of a network: one typed place for all networks and for recipes.

A network inherits them in its own options (bam_plugin.archs.options), a recipe in Recipe. Who gives other defaults
declares the field again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bam_plugin.nn.accumulation import ActivationScale
from bam_plugin.nn.layers import BinaryChain
from bam_plugin.nn.methods import Method, make_method


@dataclass(frozen=True, kw_only=True)
class ConvOptions:
    """The binarizers of the binary convolutions, and the factors around each convolution."""

    binarizer: str | None = None
    """A name in bam_plugin.nn.METHODS, or None for full precision: then no other option of this class is used."""
    weight_binarizer: str | None = None
    """Replaces the weight side of the method: a name in bam_plugin.nn.WEIGHT_BINARIZERS."""
    weight_options: Mapping[str, Any] | None = None
    """Keywords of the weight binarizer."""
    activation_binarizer: str | None = None
    """Replaces the activation side of the method: a name in bam_plugin.nn.ACTIVATION_BINARIZERS. `float` keeps the
    activations full precision (Table 5)."""
    activation_options: Mapping[str, Any] | None = None
    """Keywords of the activation binarizer."""
    output_scale: str | None = "channel"
    """Learned factor after each binary convolution: `channel`, `scalar` or None, see BinaryConv2d."""
    output_scale_init: float = 0.1
    """Start of that factor."""
    latent_gain: float = 0.1
    """Factor on the start of the latent weights, see BinaryConv2d."""

    def method(self, **changes: Any) -> Method:
        """The method of `binarizer`, which is not None, with the replaced sides; `changes` as in make_method."""
        assert self.binarizer is not None
        return make_method(
            self.binarizer,
            weight=self.weight_binarizer,
            weight_options=self.weight_options,
            activation=self.activation_binarizer,
            activation_options=self.activation_options,
            **changes,
        )


@dataclass(frozen=True, kw_only=True)
class ChainOptions(ConvOptions):
    """The same for convolutions in accumulation groups, and what connects the members of a group."""

    accumulate_weights: bool = True
    """Accumulate the weights of a group (eq. 3), where the weight binarizer can."""
    accumulate_activations: bool | None = None
    """Accumulate the activations of a group (eq. 9); None follows the method."""
    beta: str = "spatial"
    """Mode of the factors b of eq. 9, see ActivationScale."""
    beta_statistic: str = "mean_abs"
    """Statistic of the factors b."""
    beta_init: float = 1.0
    """Start of the factors b."""
    beta_offset: float | None = None
    """Offset of the factors b; None is 0, or 1 with the mode `one`."""
    skip: bool | None = None
    """Identity path around each binary convolution that keeps its shape; None follows the method."""

    def method(self, **changes: Any) -> Method:
        """See ConvOptions."""
        return super().method(accumulate=self.accumulate_activations, skip=self.skip, **changes)

    def scale(self) -> ActivationScale:
        """One factor b of eq. 9."""
        return ActivationScale(
            mode=self.beta, statistic=self.beta_statistic, init=self.beta_init, offset=self.beta_offset
        )

    def chain(
        self,
        *,
        num_feat: int,
        num_convs: int,
        num_planes: int = 1,
        plane_shift: float = 0.7,
        norm: bool | None = None,
        relu: str = "all",
    ) -> BinaryChain:
        """One accumulation group of `num_convs` layers in sequence; the arguments as in BinaryChain."""
        return BinaryChain(
            num_feat=num_feat,
            num_convs=num_convs,
            num_planes=num_planes,
            plane_shift=plane_shift,
            method=self.method(),
            accumulate_weights=self.accumulate_weights,
            beta=self.beta,
            beta_statistic=self.beta_statistic,
            beta_init=self.beta_init,
            beta_offset=self.beta_offset,
            norm=norm,
            relu=relu,
            output_scale=self.output_scale,
            output_scale_init=self.output_scale_init,
            latent_gain=self.latent_gain,
        )
