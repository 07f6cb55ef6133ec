"""Start objects anew in a forked process: another thread of the parent may have held their locks."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Restartable(Protocol):
    """An object with a lock."""

    def start_anew(self) -> None:
        """Make a new lock, and forget work that another thread may have left half done."""
        ...


_known: weakref.WeakSet[Restartable] = weakref.WeakSet()


def restart_after_fork(item: Restartable) -> None:
    """Call `item.start_anew()` in every process that is forked from now on, for as long as the item lives."""
    _known.add(item)


def _restart_all() -> None:
    for item in list(_known):
        item.start_anew()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_restart_all)
