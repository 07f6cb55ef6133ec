"""The recipe of a mix: which convolutions of a network to binarize, how, and in which groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bam_plugin.errors import BamError, suggest
from bam_plugin.nn.options import ChainOptions, OptionError


def as_recipe(recipe: Recipe | Mapping[str, Any] | None) -> Recipe:
    """A Recipe from its keywords, as an option file has them. Raises SwapError for wrong names, types and values."""
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe or {}, Mapping):
        raise SwapError(f"a recipe must be a mapping, found {recipe!r}")
    known = [entry.name for entry in fields(Recipe)]
    values = dict(recipe or {})
    for name in values:
        if name not in known:
            raise SwapError(f"a recipe has no key {name!r}; {suggest(str(name), known)}")
    for key in ("include", "exclude"):
        if isinstance(values.get(key), str):
            values[key] = (values[key],)
    return Recipe(**values)


class SwapError(BamError):
    """A recipe is wrong, or leaves nothing to binarize in this network."""


@dataclass(frozen=True, kw_only=True)
class Recipe(ChainOptions):
    """What to binarize in a network, and how; the options of binary convolutions in groups are inherited."""

    binarizer: str = "bam"
    """Name in bam_plugin.nn.METHODS."""
    include: Sequence[str] = ("*",)
    """Patterns (fnmatch) of module names; a convolution must match one."""
    exclude: Sequence[str] = ()
    """Patterns of module names to leave out."""
    kernel_sizes: Sequence[int] | None = (3,)
    """Kernel sizes to binarize, None for all."""
    keep_first_last: bool = True
    """Leave the first and the last convolution of the network full precision."""
    group: str | int = "parent"
    """Accumulation groups: `parent` (within one module), n (n in a row), `all`, or `none`. Their convolutions have one
    shape and, with an example, maps of one size and number."""
    skip: bool | None = False
    """Identity path around each binarized convolution that keeps its shape; None follows the method. For plain chains;
    in residual blocks a second path around each convolution doubles the range from block to block."""
    norm: bool | None = None
    """BatchNorm2d after each binarized convolution; None follows the method."""
    rectifiers: str = "keep"
    """`leaky` replaces an nn.ReLU in front of a binary layer that takes the sign of the map itself (`sign`, `rsign`)
    by a leaky one, where an example shows it; behind a ReLU that sign is +1 everywhere. `keep` only says so in the
    table."""
    latent_gain: float = 1.0
    """Factor on the weights that the network has when it is binarized."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except OptionError as error:
            raise SwapError(f"recipe: {error}") from error
        if self.rectifiers not in ("keep", "leaky"):
            raise SwapError(f"rectifiers must be 'keep' or 'leaky', found {self.rectifiers!r}")
        if not (self.group in ("parent", "all", "none") or (not isinstance(self.group, str) and self.group > 0)):
            raise SwapError(f"group must be 'parent', 'all', 'none' or a positive number, found {self.group!r}")
