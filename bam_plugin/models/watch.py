"""Watches over a training. They find non-finite values and a loss that does not move, and name the layer.

Binary networks fail quietly: a NaN turns into a valid sign (NaN >= 0 is false, so -1), and a network whose body is dead
still lowers its loss to that of its float parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bam_plugin.errors import BamError

ACTIONS = ("stop", "skip")
PLATEAU_ACTIONS = ("warn", "stop")


class TrainingDivergedError(BamError):
    """The loss or a gradient is not finite."""


class TrainingPlateauError(BamError):
    """The loss does not improve for longer than the options allow."""


class NonFiniteWatch:
    """Decides what happens if the loss or the gradients of an iteration are not finite.

    action: `stop` raises TrainingDivergedError; `skip` leaves the step out, up to `max_skipped` times in succession.
    """

    def __init__(self, *, action: str = "stop", max_skipped: int = 10) -> None:
        if action not in ACTIONS:
            raise BamError(f"train.watch.nonfinite must be one of {ACTIONS}, found {action!r}")
        self.action = action
        self.max_skipped = max_skipped
        self.skipped_in_a_row = 0
        self.skipped = 0

    def finite(self) -> None:
        """Report a good iteration."""
        self.skipped_in_a_row = 0

    def not_finite(self, iteration: int, where: str) -> str:
        """Report a bad iteration. Returns the warning to log if the step is skipped, else raises."""
        message = f"iteration {iteration}: {where}"
        if self.action == "stop":
            raise TrainingDivergedError(
                f"{message}. The step was not made. Lower the learning rate, set train.grad_clip, or set "
                "train.watch.nonfinite to skip; the last saved checkpoint is from before this iteration"
            )
        self.skipped_in_a_row += 1
        self.skipped += 1
        if self.skipped_in_a_row > self.max_skipped:
            raise TrainingDivergedError(f"{message}, and {self.max_skipped} steps before it were skipped already")
        return f"{message}. The step is skipped ({self.skipped} so far)."

    def state_dict(self) -> dict[str, int]:
        """The counters, for an exact resume."""
        return {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take the counters over."""
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]


class PlateauWatch:
    """Compares the mean loss of each window of `window` iterations with the best window before it.

    If `patience` windows in succession improve on the best by less than the fraction `min_gain`, the training is on a
    plateau: `warn` returns a message, `stop` raises TrainingPlateauError.
    """

    def __init__(
        self, *, action: str = "warn", window: int = 1000, patience: int = 10, min_gain: float = 0.001
    ) -> None:
        if action not in PLATEAU_ACTIONS:
            raise BamError(f"train.watch.plateau must be one of {PLATEAU_ACTIONS}, found {action!r}")
        self.action = action
        self.window = window
        self.patience = patience
        self.min_gain = min_gain
        self._total, self._count, self._best, self._stale = 0.0, 0, float("inf"), 0

    def update(self, loss: float, iteration: int, describe: Callable[[], str]) -> str | None:
        """Report the loss of an iteration. `describe()` gives details and is called only on a plateau."""
        self._total += loss
        self._count += 1
        if self._count < self.window:
            return None
        mean, self._total, self._count = self._total / self._count, 0.0, 0
        if mean < self._best * (1 - self.min_gain):
            self._best, self._stale = mean, 0
            return None
        self._stale += 1
        if self._stale < self.patience:
            return None
        self._stale = 0
        message = (
            f"iteration {iteration}: the loss has stayed at {mean:.5g} for {self.patience} windows of {self.window} "
            f"iterations (best {self._best:.5g}). {describe()}"
        )
        if self.action == "stop":
            raise TrainingPlateauError(message)
        return message

    def state_dict(self) -> dict[str, float]:
        """The running sums, for an exact resume."""
        return {"total": self._total, "count": self._count, "best": self._best, "stale": self._stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the running sums over."""
        self._total, self._count = state["total"], state["count"]
        self._best, self._stale = state["best"], state["stale"]


def make_watches(options: Mapping[str, Any]) -> tuple[NonFiniteWatch, PlateauWatch | None]:
    """The watches that `train.watch` describes. Without an action for plateaus, there is no watch over them."""
    nonfinite = NonFiniteWatch(action=options.get("nonfinite", "stop"), max_skipped=options.get("max_skipped", 10))
    if (action := options.get("plateau")) is None:
        return nonfinite, None
    return nonfinite, PlateauWatch(
        action=action,
        window=options.get("plateau_window", 1000),
        patience=options.get("plateau_patience", 10),
        min_gain=options.get("plateau_gain", 0.001),
    )


def where_not_finite(net: nn.Module, lq: Tensor, gt: Tensor) -> str:
    """The cause of a loss, or of present gradients, that are not finite, in words.

    It runs the network once more on `lq` (N, C, H, W), so its running statistics change.
    """
    # Every process runs it, whatever its batch, because synchronized normalizations wait for each other.
    layer = first_nonfinite_module(net, lambda: net(lq))
    if not bool(torch.isfinite(lq).all() and torch.isfinite(gt).all()):
        return "the batch holds non-finite values"
    if layer is not None:
        return f"the output of {layer} is not finite"
    if (name := last_nonfinite_gradient(net.named_parameters())) is not None:
        return f"the gradient of {name} is not finite"
    return "the loss is not finite although the network's output is"


def first_nonfinite_module(net: nn.Module, run: Callable[[], Any]) -> str | None:
    """Name of the first module, in the order of execution, whose output is not finite while `run()` calls the network.

    Inner modules come before the ones that hold them. None if all outputs are finite.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and torch.is_tensor(output) and not bool(torch.isfinite(output).all()):
                found.append(f"{name or 'the network'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in net.named_modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def last_nonfinite_gradient(named_parameters: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the last parameter of the network with a non-finite gradient: the first one that backward() reached."""
    bad = [
        name
        for name, parameter in named_parameters
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    return bad[-1] if bad else None
