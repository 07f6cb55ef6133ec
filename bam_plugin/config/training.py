"""Check the section train: optimizers, losses, and a schedule that lasts as long as the training."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from bam_plugin.config.problems import KeyPath, Problem
from bam_plugin.config.schema import OPTIMIZER_KEYS
from bam_plugin.config.signatures import check_typed
from bam_plugin.errors import suggest

# The training loop passes these itself.
_OPTIMIZER_INPUTS = ("params",)
_SCHEDULER_INPUTS = ("optimizer", "last_epoch", "iteration", "total_iter", "warmup_iter")

_SCHEDULER = ("train", "scheduler")
_REDUCTIONS = ("mean", "sum")


def in_iterations(train: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Problem]]:
    """A copy of the section with iterations in place of epochs, as BinarySRModel's training makes it."""
    from bam_plugin.optim import resolve_epochs
    from bam_plugin.optim.errors import OptimizerError

    resolved = copy.deepcopy(dict(train))
    try:
        resolve_epochs(resolved)
        return resolved, []
    except OptimizerError as error:
        problem = Problem(("train",), str(error))
    except TypeError:
        problem = Problem(("train",), "options in epochs, and iters_per_epoch, must be numbers")
    # One message is enough, so no check looks at the options in epochs again.
    sections = [resolved, *(value for value in resolved.values() if isinstance(value, dict))]
    for section in sections:
        for name in [name for name in section if str(name).endswith("_epochs")]:
            del section[name]
    return resolved, [problem]


def check_training(
    train: Mapping[str, Any], reads: Collection[str], *, ours: bool, elsewhere: Callable[[str], str | None]
) -> Iterator[Problem]:
    """Check the optimizers, the losses and the scheduler that the section names.

    reads: the keys of train that the model reads. ours: the model is one of this package and knows its optimizers
    and schedules.
    """
    from basicsr.utils.registry import LOSS_REGISTRY

    losses = dict(iter(LOSS_REGISTRY))
    for name, value in train.items():
        key = ("train", name)
        if name not in reads:
            continue
        if name.startswith("optim_"):
            also = OPTIMIZER_KEYS if ours else ()
            optimizers = _optimizers()
            problems = list(
                check_typed(value, key, optimizers, given=_OPTIMIZER_INPUTS, also=also, elsewhere=elsewhere)
            )
            yield from problems or _check_optimizer(value, key, optimizers[value["type"]], also)
        elif name.endswith("_opt") and isinstance(value, Mapping) and "type" in value:
            yield from check_typed(value, key, losses, elsewhere=elsewhere)
            if value.get("reduction", "mean") not in _REDUCTIONS:
                message = f"{value['reduction']!r} is no valid value, a loss is one number; {suggest('', _REDUCTIONS)}"
                yield Problem((*key, "reduction"), message)
    if "pixel_opt" in reads and not (train.get("pixel_opt") or train.get("perceptual_opt")):
        yield Problem(("train", "pixel_opt"), "is missing; a training needs a loss, such as {type: L1Loss}")
    scheduler = train.get("scheduler")
    if isinstance(scheduler, Mapping):
        problems = list(
            check_typed(scheduler, _SCHEDULER, _schedulers(ours), given=_SCHEDULER_INPUTS, elsewhere=elsewhere)
        )
        yield from problems or _check_lengths(scheduler, train.get("total_iter"))


def _check_optimizer(
    value: Mapping[str, Any], key: KeyPath, optimizer: Any, also: Collection[str]
) -> Iterator[Problem]:
    """Make the optimizer of one matrix (Muon takes nothing else): its constructor knows the ranges of its options."""
    import torch

    options = {name: each for name, each in value.items() if name != "type" and name not in also}
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1, 1))], **options)
    except Exception as error:
        yield Problem(key, f"{value['type']} refuses these options: {error}")


def _optimizers() -> dict[str, Any]:
    from bam_plugin.optim import OPTIMIZER_REGISTRY

    return dict(iter(OPTIMIZER_REGISTRY))


def _schedulers(ours: bool) -> dict[str, Any]:
    from basicsr.models import lr_scheduler

    from bam_plugin.optim import SCHEDULES

    schedulers: dict[str, Any] = {
        name: scheduler
        for name, scheduler in vars(lr_scheduler).items()
        if inspect.isclass(scheduler) and name.endswith("RestartLR")
    }
    schedulers["MultiStepLR"] = lr_scheduler.MultiStepRestartLR
    if ours:
        schedulers.update(SCHEDULES)
    return schedulers


def _check_lengths(scheduler: Mapping[str, Any], total_iter: Any) -> Iterator[Problem]:
    """Find lengths that would crash a schedule in the middle of a training, or change it silently."""
    weights = scheduler.get("restart_weights", [1])
    for name in ("periods", "restarts"):
        values = scheduler.get(name)
        if isinstance(values, list) and isinstance(weights, list) and len(values) != len(weights):
            yield Problem(
                (*_SCHEDULER, "restart_weights"),
                f"has {len(weights)} values for the {len(values)} of {name}; give one each",
            )
    if not isinstance(total_iter, int):
        return
    periods = scheduler.get("periods")
    periods = [period for period in periods if isinstance(period, (int, float))] if isinstance(periods, list) else []
    if periods and sum(periods) < total_iter:
        yield Problem(
            (*_SCHEDULER, "periods"),
            f"sum to {sum(periods)}, but train.total_iter is {total_iter}: the training would crash there; make them "
            f"sum to {total_iter}, or set train.total_iter to {sum(periods)}",
        )
    length = scheduler.get("cooldown_iter")
    if isinstance(length, int) and not 0 < length <= total_iter:
        yield Problem(
            (*_SCHEDULER, "cooldown_iter"), f"must lie in 1 .. train.total_iter, which is {total_iter}, found {length}"
        )
    milestones = scheduler.get("milestones") or []
    late = [each for each in milestones if isinstance(each, int) and each > total_iter]
    if late and late == milestones:
        yield Problem(
            (*_SCHEDULER, "milestones"),
            f"{milestones} all lie after train.total_iter {total_iter}: the rate would never fall; lower them, or "
            "write milestones: []",
        )
