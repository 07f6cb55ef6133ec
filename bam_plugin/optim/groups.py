"""Parameter groups: the kind of each parameter, and rules that claim parameters.

A rule is a (predicate, settings) pair. Every parameter belongs to exactly one group. Two rules that
claim the same parameter are an error, and so is a rule that claims none: the option file would not do what it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bam_plugin.nn import ActivationScale, BinaryConv2d
from bam_plugin.optim.errors import OptimizerError

# The kinds of parameters, in the order of the groups.
KINDS: dict[str, str] = {
    "latent": "full-precision weights behind the signs (BinaryConv2d.weight)",
    "alpha": "factors of the weight accumulation, and other parameters of weight binarizers",
    "beta": "factors of the activation accumulation (ActivationScale)",
    "scale": "learned factors on the output of binary convolutions",
    "threshold": "normalization and shifts before a sign: they place its threshold",
    "norm": "affine parameters of the other normalizations",
    "float": "everything else: full-precision weights, biases, slopes",
}

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Rule:
    """Parameters for which `predicate(name, kind)` is true get `settings`: `lr_mult` and options of the optimizer."""

    name: str
    predicate: Callable[[str, str], bool]
    settings: Mapping[str, Any] = field(default_factory=dict)


def parameter_kinds(net: nn.Module) -> dict[str, str]:
    """The kind (a key of KINDS) of each parameter of `net`, by its name, in the order of `named_parameters()`."""
    kinds = {name: "float" for name, _ in net.named_parameters()}

    def mark(prefix: str, module: nn.Module | None, kind: str) -> None:
        for name, _ in module.named_parameters() if module is not None else ():
            kinds[f"{prefix}{name}"] = kind

    for path, module in net.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, _NORMS) and kinds.get(f"{prefix}weight") == "float":
            mark(prefix, module, "norm")
        elif isinstance(module, ActivationScale):
            mark(prefix, module, "beta")
        elif isinstance(module, BinaryConv2d):
            kinds[f"{prefix}weight"] = "latent"
            mark(f"{prefix}binarize_weight.", module.binarize_weight, "alpha")
            mark(f"{prefix}binarize_activation.", module.binarize_activation, "threshold")
            if module.output_scale is not None:
                kinds[f"{prefix}output_scale"] = "scale"
    return kinds


def parse_rule(options: Mapping[str, Any]) -> Rule:
    """A rule of the option file: `match` is a kind, `re:PATTERN` (searched in the name), or a list of these."""
    settings = dict(options)
    try:
        match = settings.pop("match")
    except KeyError as error:
        raise OptimizerError(f"a rule of train.optim_g.rules needs `match`, found {dict(options)}") from error
    words = [match] if isinstance(match, str) else list(match)
    tests = [_parse_match(word) for word in words]
    return Rule(", ".join(words), lambda name, kind: any(test(name, kind) for test in tests), settings)


def split_by_kind(rule: Rule, kinds: Mapping[str, str], defaults: Callable[[str], Mapping[str, Any]]) -> list[Rule]:
    """One rule for each kind that `rule` claims, with its settings over `defaults(kind)`."""
    claimed = {kind for name, kind in kinds.items() if rule.predicate(name, kind)}

    def part(kind: str) -> Rule:
        name = rule.name if len(claimed) == 1 else f"{rule.name} ({kind})"
        settings = {**defaults(kind), **rule.settings}
        return Rule(name, lambda each, found: found == kind and rule.predicate(each, found), settings)

    return [part(kind) for kind in KINDS if kind in claimed] or [rule]


def assign(kinds: Mapping[str, str], rules: Sequence[Rule]) -> dict[str, list[str]]:
    """The names that each rule claims, by the rule's name. Exactly one rule claims each parameter.

    Raises OptimizerError if a rule claims nothing, or if two rules or no rule claim a parameter.
    """
    claims: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    for rule in rules:
        names = [name for name, kind in kinds.items() if rule.predicate(name, kind)]
        if not names:
            raise OptimizerError(
                f"the parameter rule {rule.name!r} claims no parameter; the network has the kinds "
                f"{', '.join(sorted(set(kinds.values())))}, and names such as {next(iter(kinds), 'none')!r}"
            )
        twice = next((name for name in names if name in owners), None)
        if twice is not None:
            raise OptimizerError(
                f"the parameter {twice!r} is claimed by the rules {owners[twice]!r} and {rule.name!r}; "
                "make them exclusive"
            )
        owners.update(dict.fromkeys(names, rule.name))
        claims[rule.name] = names
    missing = [name for name in kinds if name not in owners]
    if missing:
        raise OptimizerError(f"no parameter rule claims {missing[0]!r} and {len(missing) - 1} others")
    return claims


def _parse_match(word: str) -> Callable[[str, str], bool]:
    if word.startswith("re:"):
        try:
            pattern = re.compile(word[3:])
        except re.error as error:
            raise OptimizerError(f"train.optim_g.rules: {word!r} is no regular expression: {error}") from error
        return lambda name, kind: pattern.search(name) is not None
    if word not in KINDS:
        raise OptimizerError(
            f"train.optim_g.rules: match must be one of {', '.join(KINDS)} or re:PATTERN, found {word!r}"
        )
    return lambda name, kind: kind == word
