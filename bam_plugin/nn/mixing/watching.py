"""What a foreign network does with its convolutions: seen in one forward in training and one in evaluation."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bam_plugin.errors import BamError


def watch(module: nn.Module, example: Tensor) -> Watched:
    """Run a copy of `module` on `example` (N, C, H, W), N of at least 2, and note what it calls."""
    watched = Watched()
    calls: dict[str, set[str]] = {}
    for mode in ("training", "evaluation"):
        twin = copy.deepcopy(module).train(mode == "training")
        calls[mode] = set()

        def note(part: nn.Module, args: Any, name: str, mode: str = mode) -> None:
            calls[mode].add(name)
            if mode == "training" and isinstance(part, nn.modules.conv._ConvNd):
                if name not in watched.order:
                    watched.order.append(name)
                watched.counts[name] += 1
                watched.sizes[name] = tuple(args[0].shape[2:])

        for name, part in twin.named_modules():
            part.register_forward_pre_hook(lambda part, args, name=name, note=note: note(part, args, name))
        try:
            with torch.no_grad():
                twin(example)
        except Exception as error:
            raise WatchError(
                f"{type(module).__name__} does not run on an example of shape {tuple(example.shape)} in {mode} "
                f"({type(error).__name__}: {error}); choose another example, or none"
            ) from error
    watched.called = calls["training"] & calls["evaluation"]
    watched.bypassed = set(watched.order) - calls["evaluation"]
    return watched


def _enter_training_form(module: nn.Module, args: Any) -> None:
    # The module's own flag only: its children keep their modes. The next `eval()` clears it, the next forward sets it.
    module.training = True


def keep_training_form(module: nn.Module) -> None:
    """Let `module` evaluate by its training branch (the branches of a re-parameterized block instead of their sum)."""
    if _enter_training_form not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_enter_training_form)


class WatchError(BamError):
    """A network does not run on the example."""


@dataclass
class Watched:
    """The calls of one forward of a network; names are those of its modules."""

    order: list[str] = field(default_factory=list)
    """Convolutions in the order of their first call in training."""
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Convolution -> number of calls in one training forward."""
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Convolution -> (H, W) of its input."""
    called: set[str] = field(default_factory=set)
    """All modules that were called, in training and in evaluation."""
    bypassed: set[str] = field(default_factory=set)
    """Convolutions that training calls and evaluation does not: it computes with their weights in another form."""

    def reason_to_keep(self, name: str) -> str | None:
        """Why this convolution must stay full precision, or None."""
        if not self.counts[name]:
            return "never called: the network uses its weight without it"
        if self.sizes[name] == (1, 1):
            return "works on a single pixel (channel attention)"
        return None
