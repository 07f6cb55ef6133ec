"""OPTIMIZER_REGISTRY: every optimizer that `train.optim_g.type` can name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from bam_plugin.toolbox import compat

compat.require_basicsr()

from basicsr.utils.registry import Registry  # noqa: E402 (after the repairs)

OPTIMIZER_REGISTRY = Registry("optimizer")

# They need a closure that evaluates the loss several times. A training loop over batches has none.
_NEED_CLOSURE = ("LBFGS",)


@dataclass(frozen=True)
class OptimizerInfo:
    """One optimizer as `bam optimizers` shows it."""

    name: str
    origin: str
    """`bam_plugin`, `torch` or the module of a plugin."""
    description: str
    """The first line of the docstring."""
    defaults: dict[str, Any]
    """Keyword arguments and their default values."""


def register_torch_optimizers() -> None:
    """Register every optimizer of `torch.optim` under its class name. Names that are registered already stay."""
    for name, value in vars(torch.optim).items():
        if not inspect.isclass(value) or not issubclass(value, torch.optim.Optimizer):
            continue
        if name not in OPTIMIZER_REGISTRY and name not in ("Optimizer", *_NEED_CLOSURE):
            OPTIMIZER_REGISTRY.register(value)


def describe_optimizers() -> list[OptimizerInfo]:
    """All registered optimizers: those for binary networks first, then the others by name."""
    infos = [_describe(name, cls) for name, cls in OPTIMIZER_REGISTRY]
    return sorted(infos, key=lambda info: (info.origin == "torch", info.name))


def _describe(name: str, cls: type) -> OptimizerInfo:
    package = cls.__module__.split(".")[0]
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    }
    # torch's docstrings begin with formulas, so the class name has to do.
    text = f"torch.optim.{name}" if package == "torch" else inspect.getdoc(cls) or ""
    return OptimizerInfo(name, package, text.splitlines()[0] if text else "", defaults)


register_torch_optimizers()
