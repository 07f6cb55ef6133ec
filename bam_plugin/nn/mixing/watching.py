"""What a foreign network does with its convolutions, seen in forwards in training and in evaluation.

`watch` looks before anything is replaced: the order of the calls, the maps, what evaluation computes in another form.
`rehearse` looks at a copy in which everything is replaced: a network may call a convolution that is no longer in its
place (kept in a plain list, say), or read something that only nn.Conv2d has. Both leave the network as it was.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bam_plugin.errors import BamError

Inputs = tuple[Tensor, ...]
MODES = ("training", "evaluation")


def is_convolution(module: nn.Module) -> bool:
    """Whether `module` is a convolution of any kind, a scripted one too."""
    name = getattr(module, "original_name", "") if isinstance(module, torch.jit.ScriptModule) else ""
    return isinstance(module, nn.modules.conv._ConvNd) or name.startswith("Conv")


def twin_of(module: nn.Module) -> nn.Module:
    """A deep copy; results that modules keep (the weight that weight_norm computes) are copied without their graph."""
    held = [value for part in module.modules() for value in vars(part).values()]
    memo = {id(value): value.detach().clone() for value in held if isinstance(value, Tensor) and not value.is_leaf}
    return copy.deepcopy(module, memo)


def fitted(example: Any, module: nn.Module) -> Inputs:
    """The inputs that `example` stands for, a tensor or a tuple of them, in the type and on the device of `module`.

    Raises WatchError for anything else.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    if not inputs or not all(isinstance(each, Tensor) for each in inputs):
        raise WatchError(f"the example must be a tensor, or a tuple of those that the network takes, found {example!r}")
    floats = next((value for value in module.parameters() if value.is_floating_point()), None)
    if floats is None:
        return inputs
    return tuple(each.to(floats if each.is_floating_point() else floats.device) for each in inputs)


def watch(module: nn.Module, example: Inputs) -> Watched:
    """Run copies of `module` on `example` (N, ...), N of at least 2, and note what it calls. Raises WatchError."""
    watched = Watched()
    calls: dict[str, set[str]] = {}
    for mode in MODES:
        twin = _copied(module).train(mode == "training")
        calls[mode] = set()

        def note(part: nn.Module, args: Any, kwargs: Any, name: str, mode: str = mode) -> None:
            calls[mode].add(name)
            if mode == "training" and is_convolution(part):
                if name not in watched.order:
                    watched.order.append(name)
                watched.counts[name] += 1
                shape = (*args, *kwargs.values())[0].shape
                watched.maps[name] = (*shape[:-3], *shape[-2:])

        for name, part in twin.named_modules():
            if not isinstance(part, torch.jit.ScriptModule):
                part.register_forward_pre_hook(
                    lambda part, args, kwargs, name=name, note=note: note(part, args, kwargs, name), with_kwargs=True
                )
        weights = {id(value): name.rpartition(".")[0] for name, value in twin.named_parameters()}
        with _Uses() as uses:
            _run(twin, example, mode, f"{type(module).__name__} does not run")
        watched.used |= {weights[each] for each in uses.seen & set(weights)}
    watched.called = calls["training"] & calls["evaluation"]
    watched.bypassed = set(watched.order) - calls["evaluation"]
    return watched


def rehearse(twin: nn.Module, originals: Mapping[str, nn.Module], example: Inputs) -> dict[str, str]:
    """Run `twin`, a copy in which the convolutions `originals` were replaced, and return what does not work.

    In training it runs forwards and backwards, since gradient checkpointing shows only there. The result names
    convolutions and why they must stay full precision. Raises WatchError where no single one is to blame, and the
    errors of accumulation groups.
    """
    layers = {name: twin.get_submodule(name) for name in originals}
    called: set[nn.Module] = set()
    for part in (*layers.values(), *originals.values()):
        part.register_forward_pre_hook(lambda part, args, kwargs: called.add(part), with_kwargs=True)
    faults: dict[str, str] = {}
    for mode in MODES:
        called.clear()
        try:
            complaint = "the network does not run with binary convolutions"
            _run(twin.train(mode == "training"), example, mode, complaint, backwards=mode == "training")
        except WatchError as error:
            cause = error.__cause__
            owner = getattr(cause, "obj", None) if isinstance(cause, AttributeError) else None
            name = next((name for name, layer in layers.items() if layer is owner), None)
            if name is None:
                raise
            return {name: f"the network reads its attribute {getattr(cause, 'name', '')!r}, which nn.Conv2d has"}
        for name, layer in layers.items():
            if originals[name] in called:
                faults[name] = "the network keeps it in a second place (such as a plain list) and calls it there"
            elif layer not in called:
                faults[name] = f"the network does not call what takes its place, in {mode}"
    return faults


def _copied(module: nn.Module) -> nn.Module:
    try:
        return twin_of(module)
    except Exception as error:
        raise WatchError(
            f"{type(module).__name__} cannot be copied, so it cannot be watched on an example "
            f"({type(error).__name__}: {error}); give no example"
        ) from error


def _run(module: nn.Module, example: Inputs, mode: str, complaint: str, *, backwards: bool = False) -> None:
    try:
        with torch.set_grad_enabled(backwards):
            results = module(*example)
            if backwards:  # in inference mode nothing requires a gradient
                leaves = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor) and leaf.requires_grad]
                if leaves:
                    torch.autograd.backward(leaves, [torch.ones_like(leaf) for leaf in leaves])
    except BamError:
        raise
    except Exception as error:
        raise WatchError(
            f"{complaint} on an example of shape {' and '.join(str(tuple(each.shape)) for each in example)} in {mode} "
            f"({type(error).__name__}: {error}); choose another example, or none"
        ) from error


def _enter_training_form(module: nn.Module, args: Any) -> None:
    # The module's own flag only: its children keep their modes. The next `eval()` clears it, the next forward sets it.
    module.training = True


def keep_training_form(module: nn.Module) -> None:
    """Let `module` evaluate by its training branch (the branches of a re-parameterized block instead of their sum)."""
    if _enter_training_form not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_enter_training_form)


class WatchError(BamError):
    """A network does not run on the example."""


class _Uses(TorchFunctionMode):
    """Notes the identities of the tensors that functions of torch are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":  # reading a type or a shape computes nothing
            self.seen.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


@dataclass
class Watched:
    """The calls of one forward of a network; names are those of its modules."""

    order: list[str] = field(default_factory=list)
    """Convolutions in the order of their first call in training."""
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Convolution -> number of calls in one training forward."""
    maps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Convolution -> (N, H, W) of its input: a network may put frames or windows into the batch."""
    used: set[str] = field(default_factory=set)
    """Modules whose parameters were computed with, called or not."""
    called: set[str] = field(default_factory=set)
    """All modules that were called, in training and in evaluation."""
    bypassed: set[str] = field(default_factory=set)
    """Convolutions that training calls and evaluation does not: it computes with their weights in another form."""

    def reason_to_keep(self, name: str) -> str | None:
        """Why this convolution must stay full precision, or None."""
        if not self.counts[name]:
            if name in self.used:
                return "never called: the network uses its weight without it"
            return "not reached by the example in training"
        if len(self.maps[name]) < 3:
            return "works on a map without a batch"
        if self.maps[name][-2:] == (1, 1):
            return "works on a single pixel (channel attention)"
        return None
