"""Building a network that is no larger than the file that holds its state.

A file may ask for a thousand million blocks. PyTorch calls hooks when a parameter, a buffer or a part gets its place in
a module, which is before a parameter's memory is filled. There the building ends. Sizes of single tensors are seen
before they are made at all.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

MOST_PARTS = 8, 1000  # entries of modules: so many for each tensor of the file, and so many besides
MOST_NUMBERS = 4, 1 << 20  # the same for numbers
MOST_WORK = 1 << 26  # numbers of one tensor, besides those that the file has: a host is watched on an example


class BoundError(RuntimeError):
    """A network has more parts, or more numbers, than the state that is there for it."""


@contextlib.contextmanager
def bounded(tensors: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Inside the block this thread raises BoundError if it builds a network that is far larger than `tensors`."""
    own, found = threading.get_ident(), {"parts": 0, "numbers": 0}
    held = sum(array.size * (8 if array.dtype == np.uint8 else 1) for array in tensors.values())
    most = {
        "parts": MOST_PARTS[0] * len(tensors) + MOST_PARTS[1],
        "numbers": MOST_NUMBERS[0] * held + MOST_NUMBERS[1],
    }

    def note(module: nn.Module, name: str, item: object) -> None:
        if threading.get_ident() != own:
            return
        found["parts"] += 1
        found["numbers"] += item.numel() if isinstance(item, Tensor) else 0
        for what, limit in most.items():
            if found[what] > limit:
                raise BoundError(f"it has more than {limit} {what}, the file has {len(tensors)} tensors")

    with contextlib.ExitStack() as hooks:
        for register in (
            torch_module.register_module_parameter_registration_hook,
            torch_module.register_module_buffer_registration_hook,
            torch_module.register_module_module_registration_hook,
        ):
            hooks.callback(register(note).remove)
        hooks.enter_context(_SizesOfNewTensors(most["numbers"] + MOST_WORK))
        yield


class _SizesOfNewTensors(TorchDispatchMode):
    """Sees the sizes that an operator is to make, which are its first argument, before they take memory."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        sizes = args[0] if args else None
        if not isinstance(sizes, (list, tuple)) or not all(type(size) is int for size in sizes):
            sizes = ()
        if math.prod(sizes) > self._limit:
            raise BoundError(f"it makes a tensor of {list(sizes)}, more than {self._limit} numbers")
        return func(*args, **(kwargs or {}))
