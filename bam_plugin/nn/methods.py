"""The published methods as combinations: two binarizers and what the paper puts around the convolution.

A method is data, so any part of it can be replaced: `make_method("bam", activation="float")` has BAM's weights and
full-precision activations. What each binarizer computes, and with which gradient, is in the docstring of its class.

Bi-Real Net, ReActNet, E2FIF and BBCU have one full-precision identity path around every convolution and none around a
block of two. In words (W latent weight, A activation, g the gradient that reaches the binary value, * the convolution,
Sign(0) = +1 throughout):

- `bireal`: y = BN(W^B * Sign(A)) + A;   `react`: y = RPReLU(BN(W^B * Sign(A - t)) + A).
- `e2fif`: y = BN(W^B * Sign(A)) + A with W^B = Sign(W), no scale, dL/dW = g; dL/dA = g max(0, 2 - 2|A|). A leaky ReLU
  of slope 0.1 stands between the two convolutions of a block.
- `bbcu`: y = RPReLU(W^B * Sign(A - t)) + A, no normalization. W^B = Sign(W) E|W|, dL/dW = g where |W| <= 1, else 0;
  dL/dA = g max(0, 2 - 2|A - t|), and dL/dt = -dL/dA summed over the batch and the map. Its network is `BBCU` in
  bam_plugin.archs.
- The identity path adds the gradient of y to dL/dA. A convolution that changes the shape has none.

The authors' published code (of November 2026) differs:

- these four and XNOR-Net: the sign of 0 is 0, which is no value of the alphabet. `dorefa`: 0.5 is rounded to 0.
- `bireal`, `react`: latents start as rand * 0.001, all positive. `bireal`: dL/dW = g inside [-1, 1] without the factor
  E|W| of the paper: `weight_binarizer: react` is that. `react`: trained in two steps, binary activations first.
- `e2fif`: a bias in front of each normalization, which the normalization takes away again.
- `bbcu`: the input is multiplied by k = 130 and the output divided by it, which amplifies the identity path (`BBCU` has
  it; in other networks `output_scale` scales the other branch).
- `xnor`: before each step the latents lose their mean over the input channels and are clipped to [-1, 1]; the magnitude
  of the activations (K of the paper) is left out; dL/dW has the factor 1 - 1/I for I input channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bam_plugin.nn.activations import ACTIVATION_BINARIZERS
from bam_plugin.nn.weights import WEIGHT_BINARIZERS


def make_method(
    name: str,
    *,
    weight: str | None = None,
    weight_options: Mapping[str, Any] | None = None,
    activation: str | None = None,
    activation_options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Method:
    """The method `name` with replaced parts.

    Options of a side are added to those of the method. If the side itself is replaced, the options that the method has
    for it are dropped. `changes` are further fields of Method. A value of None leaves the field as it is.
    """
    if name not in METHODS:
        raise ValueError(f"binarizer must be one of {tuple(METHODS)}, found {name!r}")
    method = METHODS[name]
    sides = {
        "weight": (weight, weight_options, WEIGHT_BINARIZERS),
        "activation": (activation, activation_options, ACTIVATION_BINARIZERS),
    }
    updates = {key: value for key, value in changes.items() if value is not None}
    for side, (choice, options, table) in sides.items():
        if choice is not None and choice not in table:
            raise ValueError(f"{side}_binarizer must be one of {tuple(table)}, found {choice!r}")
        replaced = choice is not None and choice != getattr(method, side)
        updates[side] = choice or getattr(method, side)
        updates[f"{side}_options"] = {
            **({} if replaced else getattr(method, f"{side}_options")),
            **(options or {}),
        }
    return replace(method, **updates)


def methods_of_parts(chosen: Sequence[str], known: Sequence[str], method: Method | None) -> dict[str, Method | None]:
    """The method of each of the `known` parts of a network: `method` if it is `chosen`, else None (full precision).

    Raises ValueError for an unknown part, and if parts are chosen without a method.
    """
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"binary_parts must be some of {tuple(known)}, found {unknown}")
    if chosen and method is None:
        raise ValueError(f"binary_parts {list(chosen)} needs a binarizer, found None")
    return {part: method if part in chosen else None for part in known}


@dataclass(frozen=True, kw_only=True)
class Method:
    """The parts of one binary convolution of a body."""

    weight: str
    """Name in WEIGHT_BINARIZERS."""
    activation: str
    """Name in ACTIVATION_BINARIZERS."""
    source: str
    """Its source."""
    weight_options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the weight binarizer, without group_index."""
    activation_options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the activation binarizer, without num_feat."""
    accumulate: bool = False
    """Whether the activations of a group are accumulated (eq. 9)."""
    norm: bool | None = None
    """BatchNorm2d after the convolution. None leaves that to the network."""
    skip: bool = False
    """Full-precision identity path around the convolution."""
    rprelu: str | None = None
    """RPReLU `before` or `after` the identity path is added, or None."""
    leaky_slope: float | None = None
    """Slope of a leaky ReLU between the layers of a chain, or None."""

    @property
    def float_activations(self) -> bool:
        """Whether only the weights are binary."""
        return ACTIVATION_BINARIZERS[self.activation].alphabet is None

    @property
    def needs_both_signs(self) -> bool:
        """Whether a rectified map would blind it: its sign is taken of the map itself, see ActivationBinarizer."""
        return not self.float_activations and not ACTIVATION_BINARIZERS[self.activation].normalizes

    def conv_options(self, group_index: int = 0) -> dict[str, Any]:
        """Keywords for BinaryConv2d at this 0-based position of an accumulation group."""
        weight_options = dict(self.weight_options)
        if WEIGHT_BINARIZERS[self.weight].accumulates:
            weight_options["group_index"] = group_index
        return {
            "weight_binarizer": self.weight,
            "weight_options": weight_options,
            "activation_binarizer": self.activation,
            "activation_options": dict(self.activation_options),
        }


METHODS: dict[str, Method] = {
    "bam": Method(
        weight="bam", activation="bn_sign", accumulate=True, source="Xin et al., ECCV 2020: bit accumulation in groups"
    ),
    "bnn": Method(weight="bnn", activation="bn_sign", source="Hubara et al., NeurIPS 2016"),
    "dorefa": Method(weight="dorefa", activation="dorefa", source="Zhou et al., arXiv 1606.06160, W1A1"),
    "abc": Method(weight="abc", activation="abc", source="Lin et al., NeurIPS 2017, 3 weight bases, 1 activation base"),
    "xnor": Method(weight="xnor", activation="xnor", source="Rastegari et al., ECCV 2016"),
    "bireal": Method(weight="bireal", activation="sign", norm=True, skip=True, source="Liu et al., ECCV 2018"),
    "react": Method(
        weight="react", activation="rsign", norm=True, skip=True, rprelu="after", source="Liu et al., ECCV 2020"
    ),
    "e2fif": Method(
        weight="bnn",
        weight_options={"clip": False},
        activation="sign",
        norm=True,
        skip=True,
        leaky_slope=0.1,
        source="Song et al., TIP 2023: y = BN(conv) + identity around every convolution",
    ),
    "bbcu": Method(
        weight="react",
        activation="rsign",
        norm=False,
        skip=True,
        rprelu="before",
        source="Xia et al., ICLR 2023: no normalization, RPReLU inside the identity path",
    ),
}
