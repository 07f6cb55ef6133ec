"""A run that is shortened on the command line keeps the shape of its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from bam_plugin.config.problems import KeyPath

_TOTAL = ("train", "total_iter")
_LENGTHS = ("milestones", "periods", "cooldown_iter")


def shorten_schedule(values: dict[str, Any], forced: Mapping[KeyPath, Any]) -> list[str]:
    """Shorten the lengths of train.scheduler in `values`, in place, when a smaller train.total_iter alone is forced.

    Whoever forces a key of the scheduler, too, has chosen its lengths. Returns one note for each changed length.
    """
    train: dict[str, Any] = values["train"] if isinstance(values.get("train"), dict) else {}
    scheduler, total, wanted = train.get("scheduler"), train.get("total_iter"), forced.get(_TOTAL)
    if not isinstance(scheduler, dict) or any(key[:2] == ("train", "scheduler") for key in forced):
        return []
    if not _is_length(total) or not _is_length(wanted) or wanted >= total:
        return []

    def shorter(length: int) -> int:
        return max(1, -(-length * wanted // total))  # upwards, so that periods still cover the run

    notes = []
    for name in _LENGTHS:
        value = scheduler.get(name)
        if _is_length(value):
            scheduler[name] = shorter(value)
        elif isinstance(value, list) and value and all(map(_is_length, value)):
            scheduler[name] = [shorter(each) for each in value]
        else:
            continue
        notes.append(f"train.total_iter is {wanted} instead of {total}, so train.scheduler.{name} is {scheduler[name]}")
    return notes


def _is_length(value: Any) -> TypeGuard[int]:
    return type(value) is int and value > 0
