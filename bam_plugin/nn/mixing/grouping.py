"""Accumulation across a forward that we did not write: groups of binary convolutions inside a foreign network.

Inside our own blocks the earlier filters and activations are handed on explicitly. A foreign network calls its
convolutions one by one, so the members of a group meet in a frame instead: it is opened when the forward of the group's
scope (the innermost module that contains all members) begins, closed when it ends, by return or by exception, and is
never part of a module. So nothing is left after a forward, every call (nested, replicated, in another thread) has its
own frame, and a checkpointed scope opens a new one when it is computed again. torch calls no hook after an exception
that is no Exception (KeyboardInterrupt), so a frame also knows the call it belongs to, and counts only while that call
is on the stack.
A member that finds no frame, or one of another kind of forward, raises GroupScopeError: the group crosses the border of
a checkpointed segment, and its accumulation would lose gradients.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from bam_plugin.errors import BamError
from bam_plugin.nn.accumulation import ActivationScale
from bam_plugin.nn.layers import BinaryLayer

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _eager(function: _Function) -> _Function:
    """torch.compiler.disable, with the type that its annotations lose."""
    return cast(_Function, torch.compiler.disable(function))


def open_frames(group: Group) -> int:
    """Number of open frames of `group` in this thread (0 outside of forwards)."""
    return len(_live(group, _calls()))


def open_scope(module: nn.Module, group: Group) -> None:
    """Make each forward of `module` the scope of `group`."""
    module.register_forward_pre_hook(ScopeEntry(group))
    module.register_forward_hook(ScopeExit(group), always_call=True)


def _calls() -> list[tuple[int, CodeType]]:
    """The running calls of this thread, outermost first, as (identity, code); the last one is that of a module.

    Identities instead of the Python frames themselves, which would keep everything alive that an interrupted call held.
    """
    calls = []
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        # Inside, only calls that outlive the hook count: not this module, nor what torch puts around the hook.
        if calls or name == _MODULE_CALLS or not (name == __name__ or name.startswith("torch.")):
            calls.append((id(frame), frame.f_code))
        frame = frame.f_back
    return calls[::-1]


def _live(group: Group, calls: list[tuple[int, CodeType]]) -> list[_Frame]:
    """The open frames of `group`, after those of calls that an exception has ended are thrown away."""
    frames = _FRAMES.of.setdefault(group, [])
    # In place: a hook that runs later finds the same list.
    frames[:] = [frame for frame in frames if calls[frame.depth : frame.depth + 1] == [frame.call]]
    return frames


class GroupScopeError(BamError):
    """A member of an accumulation group was called outside of the one forward that the group belongs to."""


class GroupOrderError(BamError):
    """The members of an accumulation group were not called once each and in their order."""


class GroupShapeError(BamError):
    """The members of an accumulation group were called with maps of different shapes."""


class Group:
    """The identity of one accumulation group; holds no tensor.

    name: for messages. scope: name of the module whose forward opens the frame. size: number of members.
    """

    def __init__(self, *, name: str, scope: str, size: int) -> None:
        self.name = name
        self.scope = scope
        self.size = size


@dataclass
class _Frame:
    """What the members of a group have contributed so far to the running forward of its scope."""

    with_gradient: bool
    depth: int
    """Number of calls around the one that the frame belongs to."""
    call: tuple[int, CodeType]
    count: int = 0
    total: Tensor | None = None
    previous: tuple[Tensor, ...] = ()


class _Frames(threading.local):
    """The open frames of this thread, innermost last; a group that dies takes its frames along."""

    def __init__(self) -> None:
        self.of: weakref.WeakKeyDictionary[Group, list[_Frame]] = weakref.WeakKeyDictionary()


class ScopeEntry:
    """Forward pre-hook of a scope: opens a frame."""

    def __init__(self, group: Group) -> None:
        self.group = group

    @_eager
    def __call__(self, module: nn.Module, args: Any) -> None:
        """Open the frame."""
        calls = _calls()
        frame = _Frame(with_gradient=torch.is_grad_enabled(), depth=len(calls) - 1, call=calls[-1])
        _live(self.group, calls).append(frame)


class ScopeExit:
    """Forward hook of a scope: closes the frame."""

    def __init__(self, group: Group) -> None:
        self.group = group

    @_eager
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Close the frame."""
        frames = _FRAMES.of.get(self.group)
        if frames:
            frames.pop()


class GroupedLayer(BinaryLayer):
    """A binary layer in place of a convolution of a foreign network: y = layer(b_1 A_1 + ... + b_n A_n); eq. 3 and 9.

    A_i is the input of member i, and an identity path adds A_n. The parameters of the convolution that it replaces load
    by their old names: `weight` becomes `conv.weight`, `bias` stays `bias`, and what only the binary layer has keeps
    its value.

    Args:
        group: the accumulation group, None for none; then the layer is a BinaryLayer.
        index: 0-based position in the group.
        accumulate_weights: use the latents of the earlier members (eq. 3).
        beta: factors of eq. 9, None for no accumulation of activations.
        options: of BinaryLayer.
    """

    def __init__(
        self,
        *,
        group: Group | None = None,
        index: int = 0,
        accumulate_weights: bool = True,
        beta: ActivationScale | None = None,
        **options: Any,
    ) -> None:
        super().__init__(group_index=index if accumulate_weights else 0, **options)
        self.group = group
        self.index = index
        self.accumulate_weights = accumulate_weights
        self.beta = beta
        # What a network may ask of the convolution that it knows.
        self.in_channels, self.out_channels = self.conv.in_channels, self.conv.out_channels
        self.kernel_size, self.stride, self.padding = (
            (size, size) for size in (self.conv.kernel_size, self.conv.stride, self.conv.padding)
        )
        self.dilation, self.groups, self.padding_mode = (1, 1), 1, "zeros"

    @property
    def weight(self) -> Tensor:
        """The latent weight, for networks that ask their convolution for its type or its device."""
        return self.conv.weight

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """(N, I, H, W) -> (N, O, H', W'); the argument has the name that nn.Conv2d gives it."""
        if self.group is None:
            return super().forward(input)
        total, previous = self._take(input)
        source = input
        if self.beta is not None:
            weighted = self.beta(input)
            if weighted is input:
                # The network may go on to change its input in place.
                weighted = input.clone()
            source = weighted if total is None else total + weighted
        self._put(source)
        return super().forward(source, previous if self.accumulate_weights else (), input)

    @_eager
    def _take(self, x: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """What the earlier members left: the sum of their activations, of the shape of `x`, and their latents."""
        group, frame = self._frame()
        if frame.count != self.index:
            raise GroupOrderError(
                f"accumulation group {group.name}: member {self.index + 1} of {group.size} was called after "
                f"{frame.count} others; groups need members that are called once each, in order: choose another "
                "`group` in the recipe or exclude this convolution"
            )
        total = frame.total
        # A traced value has no shape to compare.
        if isinstance(total, Tensor) and isinstance(x, Tensor) and total.shape != x.shape:
            raise GroupShapeError(
                f"accumulation group {group.name}: member {self.index + 1} of {group.size} has an input of shape "
                f"{tuple(x.shape)}, the members before it {tuple(total.shape)}; give binarize an example that shows "
                "this, choose another `group` in the recipe or exclude this convolution"
            )
        return total, frame.previous

    @_eager
    def _put(self, total: Tensor) -> None:
        group, frame = self._frame()
        frame.count += 1
        # The last member leaves nothing: no other reads it.
        last = frame.count == group.size
        frame.total = None if last or self.beta is None else total
        frame.previous = () if last else (*frame.previous, self.conv.weight)

    def _frame(self) -> tuple[Group, _Frame]:
        group = self.group
        assert group is not None
        frames = _live(group, _calls())
        if not frames or frames[-1].with_gradient != torch.is_grad_enabled():
            where = group.scope or "the network itself"
            raise GroupScopeError(
                f"accumulation group {group.name}: member {self.index + 1} of {group.size} ran outside of "
                f"the forward of its scope ({where}). Either gradient checkpointing covers a part of the group only: "
                "checkpoint the whole scope, or choose a smaller `group` in the recipe; or a part of the network was "
                "called by itself: call the scope"
            )
        return group, frames[-1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        old, new = f"{prefix}weight", f"{prefix}conv.weight"
        if old in state_dict and new not in state_dict:
            state_dict[new] = state_dict.pop(old)
            for name, value in self.state_dict().items():
                state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)


_FRAMES = _Frames()
_MODULE_CALLS = nn.Module.__module__
