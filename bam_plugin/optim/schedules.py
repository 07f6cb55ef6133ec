"""Learning-rate schedules as functions of the iteration, and epochs as another way to count iterations.

BasicSR's own schedules stay available (MultiStepLR, CosineAnnealingRestartLR). The ones here act as a factor on the
rate of each group, so groups keep their ratios, and know the length of the training: nothing to keep in step by hand.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bam_plugin.optim.errors import OptimizerError

LOGGER = logging.getLogger("basicsr")

DEFAULT_ITERS_PER_EPOCH = 1000

# Options in epochs -> what BasicSR and the schedules read, in iterations.
_TRAIN_KEYS = {"total_epochs": "total_iter", "warmup_epochs": "warmup_iter"}
_SCHEDULER_KEYS = {"every_epochs": "every_iter", "milestone_epochs": "milestones", "period_epochs": "periods"}


def halving(iteration: int, *, every_iter: int, gamma: float = 0.5) -> float:
    """gamma^floor(iteration / every_iter): the paper's recipe (halved every 200 epochs)."""
    return gamma ** (iteration // every_iter)


def cosine(iteration: int, *, total_iter: int, warmup_iter: int = 0, end: float = 0.0) -> float:
    """From 1 after the warm-up along half a cosine to `end` (a fraction of the rate) at `total_iter`; flat beyond.

    The warm-up itself is BasicSR's `train.warmup_iter`, linear from 0.
    """
    position = (iteration - warmup_iter) / max(1, total_iter - warmup_iter)
    position = min(max(position, 0.0), 1.0)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * position))


def cooldown(iteration: int, *, total_iter: int, cooldown_iter: int, end: float = 0.0) -> float:
    """1 until `cooldown_iter` iterations before `total_iter`, then linear to `end` (a fraction of the rate) there.

    The constant part can be prolonged at will: resume an earlier checkpoint with a larger `total_iter`.
    """
    if not 0 < cooldown_iter <= total_iter:
        raise OptimizerError(
            f"train.scheduler.cooldown_iter must lie in 1 .. train.total_iter ({total_iter}), found {cooldown_iter}"
        )
    left = min(max((total_iter - iteration) / cooldown_iter, 0.0), 1.0)
    return end + (1 - end) * left


SCHEDULES: dict[str, Callable[..., float]] = {"HalvingLR": halving, "CosineLR": cosine, "CooldownLR": cooldown}

# What a schedule's state says of the progress; all else in it are settings, which the option file decides.
_PROGRESS = ("last_epoch", "_step_count", "_last_lr", "base_lrs", "_is_initial", "_get_lr_called_within_step")


def make_scheduler(
    optimizer: torch.optim.Optimizer, options: dict[str, Any], *, total_iter: int, warmup_iter: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule `options["type"]` (a key of SCHEDULES) for `optimizer`; other options are its keywords."""
    keywords = dict(options)
    kind = keywords.pop("type")
    factor = SCHEDULES[kind]
    given = [key for key in ("total_iter", "warmup_iter") if key in keywords]
    if given:
        raise OptimizerError(f"train.scheduler.{given[0]}: {kind} follows train.{given[0]}; set it there")
    if factor is cosine:
        keywords.update(total_iter=total_iter, warmup_iter=max(0, warmup_iter))
    if factor is cooldown:
        keywords.update(total_iter=total_iter)
    try:
        factor(0, **keywords)
    except (TypeError, ZeroDivisionError) as error:
        raise OptimizerError(f"train.scheduler: {kind} with {keywords}: {error}") from error
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: factor(iteration, **keywords))


def resumed_states(
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler], saved: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The states for `schedulers` to go on from `saved`: progress from there, settings from the option file.

    By itself a schedule would take its old settings from the state and silently ignore what the option file says now
    (milestones, say), and one of another kind could not be resumed at all. Changed settings are logged.
    """
    if len(schedulers) != len(saved):
        raise OptimizerError(
            f"the training state holds {len(saved)} schedules, this training has {len(schedulers)}: another kind of "
            "optimizer cannot go on from it; start anew, with path.pretrain_network_g for the weights"
        )
    return [_resumed_state(scheduler.state_dict(), state) for scheduler, state in zip(schedulers, saved, strict=True)]


def _resumed_state(now: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    settings = [{key: state[key] for key in state if key not in _PROGRESS} for state in (saved, now)]
    if settings[0] != settings[1]:
        LOGGER.warning(f"The schedule's settings in the state, {settings[0]}, give way to the option file's.")
    return {**now, **{key: saved[key] for key in _PROGRESS if key in saved and key in now}}


def check_restart_schedule(options: dict[str, Any], total_iter: int) -> None:
    """BasicSR's CosineAnnealingRestartLR fails when the training outlives its periods: say so before it starts."""
    if options.get("type") == "CosineAnnealingRestartLR" and sum(options.get("periods", ())) < total_iter:
        raise OptimizerError(
            f"train.scheduler.periods sum up to {sum(options.get('periods', ()))} iterations, but train.total_iter is "
            f"{total_iter}; lengthen the periods, or use type: CosineLR, which follows total_iter"
        )


def resolve_epochs(train: dict[str, Any]) -> None:
    """Replace options in epochs by their counterparts in iterations, in place, and log each conversion.

    `total_epochs` and `warmup_epochs` of `train`; `every_epochs` (HalvingLR), `milestone_epochs` (MultiStepLR) and
    `period_epochs` (CosineAnnealingRestartLR) of `train.scheduler`. An epoch is `train.iters_per_epoch` iterations,
    1000 where it is not given: the habit of EDSR and RCAN that the paper follows, not a pass over the data set.
    """
    per_epoch = train.get("iters_per_epoch", DEFAULT_ITERS_PER_EPOCH)
    for section, keys in ((train, _TRAIN_KEYS), (train.get("scheduler") or {}, _SCHEDULER_KEYS)):
        for epochs_key, iter_key in keys.items():
            if epochs_key not in section:
                continue
            # An included file may hold the other one: ~ takes it back, and -1 is BasicSR's word for no warm-up.
            if section.get(iter_key) not in (None, -1):
                raise OptimizerError(f"{epochs_key} and {iter_key} say the same thing; give one of them")
            epochs = section.pop(epochs_key)
            many = isinstance(epochs, (list, tuple))
            iterations = [round(each * per_epoch) for each in (epochs if many else [epochs])]
            section[iter_key] = iterations if many else iterations[0]
            LOGGER.info(f"{epochs_key} {epochs} = {iter_key} {section[iter_key]} ({per_epoch} iterations per epoch).")
