"""The options of a registered network as text: name, type, default, and the sentence that stands below the field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from dataclasses import dataclass
from typing import Any

from bam_plugin.nn.mixing.recipe import Recipe
from bam_plugin.toolbox.networks import find_network


def describe_network(name: str) -> dict[str, list[Option]]:
    """Section -> its options, for the registered network `name`; the section of the network itself is "".

    A network of BasicSR has names, types and defaults, and no sentences. Raises NetworkError for an unknown name.
    """
    network = find_network(name)
    sentences = _sentences(getattr(network.__init__, "options_type", None))
    parameters = inspect.signature(network).parameters.values()
    sections = {"": [_option(each, sentences) for each in parameters]}
    if any(each.name == "recipe" for each in parameters):
        recipe = inspect.signature(Recipe).parameters.values()
        sections["recipe"] = [_option(each, _sentences(Recipe)) for each in recipe]
    return sections


def _option(parameter: inspect.Parameter, sentences: dict[str, str]) -> Option:
    kind, default = parameter.annotation, parameter.default
    text = "" if kind is parameter.empty else kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return Option(
        name=parameter.name,
        kind=text.replace("collections.abc.", "").replace("typing.", ""),
        default="" if default is parameter.empty else repr(default),
        sentence=sentences.get(parameter.name, ""),
    )


def _sentences(options_type: Any) -> dict[str, str]:
    """Field -> the text below it in the source, for a dataclass and those it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(getattr(options_type, "__mro__", ())):
        if not dataclasses.is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                found[field.target.id] = " ".join(text.split())
    return found


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a network."""

    name: str
    kind: str
    """Its type, or "" where none is declared."""
    default: str
    """As Python writes it, or "" where the option is required."""
    sentence: str
    """What it does, or ""."""
