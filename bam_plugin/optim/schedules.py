"""Learning-rate schedules as functions of the iteration, and epochs as another way to count iterations.

BasicSR's own schedules stay available (MultiStepLR, CosineAnnealingRestartLR). The schedules here are factors on the
rate of each group, so the groups keep their ratios. They take the length of the training from `total_iter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from bam_plugin.optim.errors import OptimizerError

DEFAULT_ITERS_PER_EPOCH = 1000

# Options in epochs -> what BasicSR and the schedules read, in iterations.
_TRAIN_KEYS = {"total_epochs": "total_iter", "warmup_epochs": "warmup_iter"}
_SCHEDULER_KEYS = {"every_epochs": "every_iter", "milestone_epochs": "milestones", "period_epochs": "periods"}


def halving(iteration: int, *, every_iter: int, gamma: float = 0.5) -> float:
    """gamma^floor(iteration / every_iter), as in the paper's training recipe (halved every 200 epochs)."""
    return gamma ** (iteration // every_iter)


def cosine(iteration: int, *, total_iter: int, warmup_iter: int = 0, end: float = 0.0) -> float:
    """Half a cosine from 1 after the warm-up to `end` (a fraction of the rate) at `total_iter`; constant beyond.

    The warm-up itself is BasicSR's `train.warmup_iter`, linear from 0.
    """
    position = (iteration - warmup_iter) / max(1, total_iter - warmup_iter)
    position = min(max(position, 0.0), 1.0)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * position))


def cooldown(iteration: int, *, total_iter: int, cooldown_iter: int, end: float = 0.0) -> float:
    """1 until `cooldown_iter` iterations before `total_iter`, then linear to `end` (a fraction of the rate).

    A resume from an earlier checkpoint with a larger `total_iter` prolongs the constant part.
    """
    if not 0 < cooldown_iter <= total_iter:
        raise OptimizerError(
            f"train.scheduler.cooldown_iter must lie in 1 .. train.total_iter ({total_iter}), found {cooldown_iter}"
        )
    left = min(max((total_iter - iteration) / cooldown_iter, 0.0), 1.0)
    return end + (1 - end) * left


SCHEDULES: dict[str, Callable[..., float]] = {"HalvingLR": halving, "CosineLR": cosine, "CooldownLR": cooldown}


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


def check_restart_schedule(options: dict[str, Any], total_iter: int) -> None:
    """Raise OptimizerError if BasicSR's CosineAnnealingRestartLR would crash: the training outlives its periods."""
    if options.get("type") == "CosineAnnealingRestartLR" and sum(options.get("periods", ())) < total_iter:
        raise OptimizerError(
            f"train.scheduler.periods sum up to {sum(options.get('periods', ()))} iterations, but train.total_iter is "
            f"{total_iter}; lengthen the periods, or use type: CosineLR, which follows total_iter"
        )


def resolve_epochs(train: dict[str, Any]) -> list[str]:
    """Replace options in epochs by options in iterations, in place. Returns one line to log for each.

    `total_epochs` and `warmup_epochs` of `train`; `every_epochs` (HalvingLR), `milestone_epochs` (MultiStepLR) and
    `period_epochs` (CosineAnnealingRestartLR) of `train.scheduler`. An epoch is `train.iters_per_epoch` iterations,
    1000 by default. That is the habit of EDSR and RCAN, which the paper follows; it is not a pass over the data set.
    """
    conversions = []
    per_epoch = train.get("iters_per_epoch", DEFAULT_ITERS_PER_EPOCH)
    for section, keys in ((train, _TRAIN_KEYS), (train.get("scheduler") or {}, _SCHEDULER_KEYS)):
        for epochs_key, iter_key in keys.items():
            if epochs_key not in section:
                continue
            # An included file may hold the other key. `~` removes it, and -1 is BasicSR's word for no warm-up.
            if section.get(iter_key) not in (None, -1):
                raise OptimizerError(f"{epochs_key} and {iter_key} say the same thing; give one of them")
            epochs = section.pop(epochs_key)
            many = isinstance(epochs, (list, tuple))
            iterations = [round(each * per_epoch) for each in (epochs if many else [epochs])]
            section[iter_key] = iterations if many else iterations[0]
            conversions.append(
                f"{epochs_key} {epochs} = {iter_key} {section[iter_key]} ({per_epoch} iterations per epoch)."
            )
    return conversions
