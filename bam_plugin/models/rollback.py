"""Return to the state before a failed iteration, so that a skipped step or a crash leaves no trace.

Up to the optimizer's step an iteration changes only buffers (running statistics of batch normalizations) and the
learning rates; both are small, so their copies are cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn


class BufferSnapshot:
    """A copy of all buffers of a network, always in the same memory."""

    def __init__(self, *, net: nn.Module) -> None:
        self._buffers = list(net.buffers())
        self._copies = [buffer.clone() for buffer in self._buffers]

    def take(self) -> None:
        """Copy the buffers."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    def restore(self) -> None:
        """Set the buffers to their values at the last `take()`."""
        with torch.no_grad():
            if self._buffers:
                torch._foreach_copy_(self._buffers, self._copies)


class ScheduleSnapshot:
    """The learning rates and the positions of their schedules."""

    def __init__(self, *, optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> None:
        self._optimizers = optimizers
        self._schedulers = schedulers
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self._states = [deepcopy(scheduler.state_dict()) for scheduler in schedulers]

    def restore(self) -> None:
        """Set them to their values when this object was made."""
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        for scheduler, state in zip(self._schedulers, self._states, strict=True):
            scheduler.load_state_dict(state)
