"""A resume takes the progress from the training state and the settings from the option file.

By themselves torch's optimizers and schedules take both from the state, so they would ignore the option file silently.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from bam_plugin.optim.errors import OptimizerError

LOGGER = logging.getLogger("basicsr")

_START_ANEW = "start anew, with path.pretrain_network_g for the weights"
# Optimizers that keep the same moments.
_SAME_MOMENTS = ("Adam", "AdamW", "BinaryAdam")
# The progress in the state of a schedule, and in a group of parameters.
_SCHEDULE_PROGRESS = ("last_epoch", "_step_count", "_last_lr", "base_lrs", "_is_initial", "_get_lr_called_within_step")
_GROUP_PROGRESS = ("params", "lr", "initial_lr")


def resume_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], kind: str | None = None) -> None:
    """Load moments and rates from the state `saved`. Other settings of the groups stay; the log names changed ones.

    `kind` is the class of the saved optimizer, or None if it is unknown. Raises OptimizerError before it changes
    anything if that optimizer keeps other moments or has other groups.
    """
    name = type(optimizer).__name__
    if kind not in (None, name) and not {kind, name} <= set(_SAME_MOMENTS):
        raise OptimizerError(
            f"the training state is of {kind}, whose moments {name} cannot use; choose {kind}, or {_START_ANEW}"
        )
    groups = [dict(group) for group in optimizer.param_groups]
    for what, now, before in (
        ("parameter groups", *([group.get("name") for group in each] for each in (groups, saved["param_groups"]))),
        ("parameters", *([len(group["params"]) for group in each] for each in (groups, saved["param_groups"]))),
    ):
        # The groups of BasicSR's own models have no names.
        if now != before and (what == "parameters" or None not in before or len(now) != len(before)):
            raise OptimizerError(
                f"the training state holds an optimizer with the {what} {before}, {name} now has {now}: it cannot go "
                f"on from there; choose the optimizer and rules of the state, or {_START_ANEW}"
            )
    merged = [_merged(name, own, before) for own, before in zip(groups, saved["param_groups"], strict=True)]
    try:
        optimizer.load_state_dict({**saved, "param_groups": merged})
    except (KeyError, TypeError, ValueError) as error:
        raise OptimizerError(f"{name} cannot go on from the training state ({error}); {_START_ANEW}") from error


def _merged(name: str, own: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """The group `saved` with the settings of `own`. The log names the changes."""
    label = f"{name} group [{own.get('name')}]"
    settings = {key: value for key, value in own.items() if key not in _GROUP_PROGRESS}
    for key, value in settings.items():
        if key != "name" and key in saved and saved[key] != value:
            LOGGER.warning(f"{label}: {key} was {saved[key]} in the training state and is {value} now.")
    if (wanted := own.get("initial_lr")) != (kept := saved.get("initial_lr")):
        LOGGER.warning(
            f"{label}: the rate stays that of the training state, {kept}; the option file says {wanted}. To change it, "
            f"{_START_ANEW}."
        )
    return {**saved, **settings}


def resumed_states(
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler], saved: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The states from which `schedulers` go on: the progress of `saved`, the settings of the option file.

    By itself a schedule keeps its old settings, such as milestones, and one of another kind cannot go on at all. The
    log names changed settings.
    """
    if len(schedulers) != len(saved):
        raise OptimizerError(
            f"the training state holds {len(saved)} schedules, this training has {len(schedulers)}: another kind of "
            f"optimizer cannot go on from it; {_START_ANEW}"
        )
    return [_resumed_state(scheduler.state_dict(), state) for scheduler, state in zip(schedulers, saved, strict=True)]


def _resumed_state(now: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    settings = [{key: state[key] for key in state if key not in _SCHEDULE_PROGRESS} for state in (saved, now)]
    if settings[0] != settings[1]:
        LOGGER.warning(f"The schedule takes its settings from the option file; the state had {settings[0]}.")
    return {**now, **{key: saved[key] for key in _SCHEDULE_PROGRESS if key in saved and key in now}}
