"""The options of the binary convolutions of a network: one typed place for all networks and for recipes.

A network inherits them in its own options (bam_plugin.archs.options), a recipe in Recipe. Who gives other defaults
declares the field again. Names, types and values are checked when the options are made, before anything is built.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from bam_plugin.errors import BamError, suggest
from bam_plugin.nn.accumulation import ActivationScale
from bam_plugin.nn.activations import ACTIVATION_BINARIZERS
from bam_plugin.nn.layers import BinaryChain
from bam_plugin.nn.methods import METHODS, Method, make_method
from bam_plugin.nn.weights import WEIGHT_BINARIZERS

FILLED_IN = {"group_index": 0, "num_feat": 1}
"""Keywords of binarizers that the convolution fills in, with values that suit any check."""


def check_types(options: Any) -> None:
    """Raise OptionError for the first field of a dataclass whose value is not of its type."""
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        if not _is_a(value, hint):
            raise OptionError(f"{field.name} must be {_in_words(hint)}, found {value!r}")


def _is_a(value: Any, hint: Any) -> bool:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Any:
        return True
    if kind in (typing.Union, types.UnionType):
        return any(_is_a(value, each) for each in arguments)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_is_a(v, arguments[0]) for v in value)
    return isinstance(value, kind)


def _in_words(hint: Any) -> str:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(_in_words(each) for each in arguments)
    if kind is Sequence:
        return f"a list (each {_in_words(arguments[0])})"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Mapping: "a mapping"}
    return "None" if kind is type(None) else words.get(kind, getattr(kind, "__name__", str(kind)))


def _check_name(key: str, name: str | None, table: Mapping[str, Any]) -> None:
    if name is not None and name not in table:
        raise OptionError(f"{key} must be one of {tuple(table)}, found {name!r}; {suggest(name, table)}")


def _check_keywords(key: str, values: Mapping[str, Any], binarizer: type) -> None:
    """Check the options of one side against the constructor of its binarizer."""
    parameters = inspect.signature(binarizer).parameters.values()
    names = {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    own = names - set(FILLED_IN)
    for name in values:
        if name not in own:
            raise OptionError(f"{key}: {binarizer.__name__} has no option {name!r}; {suggest(name, own)}")
    try:
        binarizer(**{name: FILLED_IN[name] for name in names & set(FILLED_IN)}, **values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{key}: {error}") from error


class OptionError(BamError, ValueError):
    """An option of a network or a recipe has a wrong name, type or value."""


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

    def __post_init__(self) -> None:
        check_types(self)
        if self.binarizer is None:
            return
        _check_name("binarizer", self.binarizer, METHODS)
        method = METHODS[self.binarizer]
        _check_name("weight_binarizer", self.weight_binarizer, WEIGHT_BINARIZERS)
        _check_name("activation_binarizer", self.activation_binarizer, ACTIVATION_BINARIZERS)
        weight = WEIGHT_BINARIZERS[self.weight_binarizer or method.weight]
        _check_keywords("weight_options", self.weight_options or {}, weight)
        activation = ACTIVATION_BINARIZERS[self.activation_binarizer or method.activation]
        _check_keywords("activation_options", self.activation_options or {}, activation)

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

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.scale()
        except ValueError as error:
            raise OptionError(str(error)) from error

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
