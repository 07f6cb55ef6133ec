"""Optimizers from the options under `train.optim_g`.

optim_g:
  type: BinaryAdam          a name in OPTIMIZER_REGISTRY; all other keys are its arguments, and:
  lr: 1.0e-3
  lr_mult: {latent: 0.5}    factors on lr by kind of parameter (see KINDS)
  latent_clip: 1.0          BinaryAdam: greatest magnitude of latent weights, null for none
  rules:                    own groups: a kind or a pattern, and the settings of its parameters
    - {match: "re:^upsampler", lr_mult: 2, weight_decay: 0}     (other settings stay those of the kind)
  others: {type: BinaryAdam, lr: 1.0e-3}     Bop, Bop2ndOrder: the optimizer of everything but latent weights
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bam_plugin.nn import BinaryConv2d, sign
from bam_plugin.optim.binary_adam import BinaryAdam
from bam_plugin.optim.bop import Bop, Bop2ndOrder
from bam_plugin.optim.errors import OptimizerError
from bam_plugin.optim.groups import KINDS, Rule, assign, parameter_kinds, parse_rule, split_by_kind
from bam_plugin.optim.registry import OPTIMIZER_REGISTRY

LOGGER = logging.getLogger("basicsr")

DEFAULT_LATENT_CLIP = 1.0
_FLIPPING = (Bop, Bop2ndOrder)


def build_optimizers(net: nn.Module, options: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    """Optimizers for all trainable parameters of `net`: one, or two for Bop, which leaves the rest to `others`.

    Logs which parameters each group has. Raises OptimizerError for unknown names, bad arguments and bad rules.
    """
    kinds = parameter_kinds(net)
    parameters = dict(net.named_parameters())
    for name in [name for name, parameter in parameters.items() if not parameter.requires_grad]:
        LOGGER.warning(f"The parameter {name} is fixed (requires_grad is off) and will not be optimized.")
        del kinds[name], parameters[name]
    return _build(net, parameters, kinds, dict(options))


def depends_on_magnitude(conv: BinaryConv2d) -> bool:
    """Whether a binary weight changes when its sign replaces the latent weight (E|W|, centring, accumulation)."""
    original = conv.weight.data
    try:
        before = conv.decompose()
        conv.weight.data = sign(original)
        after = conv.decompose()
    except ValueError:
        # A binarizer that accumulates refuses to work without the earlier filters of its group.
        return True
    finally:
        conv.weight.data = original
    return len(before) != len(after) or not all(
        torch.equal(left, right) for pair in zip(before, after, strict=True) for left, right in zip(*pair, strict=True)
    )


def _build(
    net: nn.Module, parameters: Mapping[str, nn.Parameter], kinds: dict[str, str], options: dict[str, Any]
) -> list[torch.optim.Optimizer]:
    options = {key: _number(key, value) for key, value in options.items()}
    name = options.pop("type", None)
    if not isinstance(name, str) or name not in OPTIMIZER_REGISTRY:
        raise OptimizerError(f"train.optim_g.type must be a name that `bam optimizers` lists, found {name!r}")
    cls = OPTIMIZER_REGISTRY.get(name)
    others = options.pop("others", None)
    if issubclass(cls, _FLIPPING):
        return _build_flipping(net, parameters, kinds, cls, options, others)
    if others is not None:
        raise OptimizerError(f"train.optim_g.others belongs to Bop and Bop2ndOrder; {name} optimizes all parameters")
    rules = _rules(cls, kinds, options)
    return [_make(cls, options, parameters, kinds, rules)]


def _build_flipping(
    net: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    kinds: dict[str, str],
    cls: type,
    options: dict[str, Any],
    others: dict[str, Any] | None,
) -> list[torch.optim.Optimizer]:
    """Bop for the latent weights, `others` for all other parameters."""
    latents = {name: kind for name, kind in kinds.items() if kind == "latent"}
    rest = {name: kind for name, kind in kinds.items() if kind != "latent"}
    if not latents:
        raise OptimizerError(f"{cls.__name__} flips binary weights, but the network has no BinaryConv2d")
    for path, module in net.named_modules():
        if isinstance(module, BinaryConv2d) and depends_on_magnitude(module):
            raise OptimizerError(
                f"{cls.__name__} keeps no latent magnitude, but {path} needs one: its weight binarizer "
                f"({type(module.binarize_weight).__name__}) uses E|W|, normalizes or accumulates filters. Choose "
                "BinaryAdam, or a binarizer that takes only signs"
            )
    if rest and others is None:
        raise OptimizerError(
            f"train.optim_g.others is missing: {cls.__name__} optimizes binary weights only; name the optimizer of the "
            f"{len(rest)} other parameters, such as others: {{type: BinaryAdam, lr: 1.0e-3}}"
        )
    flipping = _make(cls, options, parameters, latents, [Rule("latent", lambda name, kind: True)])
    return [flipping, *(_build(net, parameters, rest, dict(others or {})) if rest else ())]


def _rules(cls: type, kinds: Mapping[str, str], options: dict[str, Any]) -> list[Rule]:
    """The rules of the options, then rules for the parameters that are left: one per kind if the kinds differ, else
    one.

    If the kinds differ, a rule becomes one group for each kind that it claims. It changes the defaults of that kind.
    """
    own = [parse_rule(rule) for rule in options.pop("rules", None) or ()]
    multipliers = options.pop("lr_mult", None) or {}
    unknown = [kind for kind in multipliers if kind not in KINDS]
    if unknown:
        raise OptimizerError(f"train.optim_g.lr_mult: expected kinds ({', '.join(KINDS)}), found {unknown[0]!r}")
    present = set(kinds.values())
    if absent := [kind for kind in multipliers if kind not in present]:
        raise OptimizerError(
            f"train.optim_g.lr_mult.{absent[0]} claims no parameter; this optimizer's parameters are of the kinds "
            f"{', '.join(kind for kind in KINDS if kind in present)}"
        )
    binary = issubclass(cls, BinaryAdam)
    latent_clip = options.pop("latent_clip", DEFAULT_LATENT_CLIP) if binary else None

    def defaults(kind: str) -> dict[str, Any]:
        settings: dict[str, Any] = {"lr_mult": _number("lr_mult", multipliers.get(kind, 1.0))}
        if binary and kind != "float":
            settings["weight_decay"] = 0.0
        if binary and kind == "latent":
            settings["clip"] = latent_clip
        return settings

    def left_to(kind: str | None) -> Any:
        return lambda name, found: (
            (kind is None or found == kind) and not any(rule.predicate(name, found) for rule in own)
        )

    left = [kind for kind in KINDS if any(left_to(kind)(name, found) for name, found in kinds.items())]
    if not binary and not multipliers:
        return [*own, *([Rule("rest" if own else "all", left_to(None))] if left else [])]
    split = [each for rule in own for each in split_by_kind(rule, kinds, defaults)]
    return [*split, *(Rule(kind, left_to(kind), defaults(kind)) for kind in left)]


def _make(
    cls: type,
    options: dict[str, Any],
    parameters: Mapping[str, nn.Parameter],
    kinds: Mapping[str, str],
    rules: list[Rule],
) -> torch.optim.Optimizer:
    accepted = {parameter.name: parameter.default for parameter in inspect.signature(cls).parameters.values()}
    groups = []
    for rule_name, names in assign(kinds, rules).items():
        rule = next(each for each in rules if each.name == rule_name)
        settings = {key: _number(key, value) for key, value in rule.settings.items()}
        multiplier = settings.pop("lr_mult", 1.0)
        unknown = [key for key in settings if key not in accepted]
        if unknown:
            raise OptimizerError(f"{cls.__name__} has no option {unknown[0]!r} (parameter rule {rule_name!r})")
        lr = settings.pop("lr", options.get("lr", accepted["lr"])) * multiplier
        groups.append({"params": [parameters[name] for name in names], "name": rule_name, "lr": lr, **settings})
        count = sum(parameters[name].numel() for name in names)
        extra = "".join(f", {key} {value}" for key, value in settings.items())
        LOGGER.info(
            f"{cls.__name__} group [{rule_name}]: {len(names)} tensors, {count:,d} parameters, lr {lr:.4g}{extra}"
        )
    try:
        return cls(groups, **options)
    except (TypeError, ValueError) as error:
        listed = ", ".join(key for key in accepted if key != "params")
        raise OptimizerError(f"train.optim_g: {cls.__name__} says: {error}. Its options: {listed}") from error


def _number(key: str, value: Any) -> Any:
    """The number that a text such as 1e-4 means; YAML 1.1 reads it as text because it has no dot."""
    if not isinstance(value, str) or key == "type":
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    LOGGER.warning(
        f"train.optim_g.{key}: read the text {value!r} as the number {number}; write a dot (1.0e-4), which YAML needs."
    )
    return number
