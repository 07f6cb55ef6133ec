"""Mixing: binary convolutions in a network that knows nothing of them.

    report = binarize(network, {"binarizer": "bam", "exclude": ["*upsample*"]}, example=torch.rand(2, 3, 24, 24))
    print(report)

`binarize` replaces convolutions in place and returns a table of what was replaced and what was not, and why. With an
`example` the network is watched while it runs, in training and in evaluation: then the groups follow the order of
execution, and convolutions that evaluation bypasses or that work on a single pixel are noticed. And the binary network
is run once as a copy, so that the table says what is true: a convolution that cannot be replaced stays full precision.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from bam_plugin.nn.methods import Method
from bam_plugin.nn.mixing.grouping import Group, GroupedLayer, open_scope
from bam_plugin.nn.mixing.recipe import Recipe, SwapError, as_recipe
from bam_plugin.nn.mixing.rectifiers import find_blind, make_leaky
from bam_plugin.nn.mixing.report import Row, SwapReport
from bam_plugin.nn.mixing.watching import (
    Inputs,
    Watched,
    fitted,
    is_convolution,
    keep_training_form,
    rehearse,
    twin_of,
    watch,
)
from bam_plugin.nn.weights import WEIGHT_BINARIZERS


def binarize(
    module: nn.Module, recipe: Recipe | Mapping[str, Any] | None = None, *, example: Tensor | Inputs | None = None
) -> SwapReport:
    """Replace convolutions of `module` by binary ones, in place, as `recipe` says.

    The present weights become the latents: make the optimizer afterwards. `example` is an input (N, C, H, W) or what
    else the module takes, a tuple if it takes several, with N of at least 2. It is recommended. It is brought to the
    type and the device of the module's parameters.
    Raises SwapError for a wrong recipe, or when no convolution qualifies, and WatchError when the module does not run
    on the example. Then the module is as it was.
    """
    recipe = as_recipe(recipe)
    method = recipe.method()
    if not isinstance(module, nn.Module):
        raise SwapError(f"binarize needs a network, an nn.Module, found {module!r}")
    inputs = None if example is None else fitted(example, module)
    watched = watch(module, inputs) if inputs is not None else None
    convs = {name: part for name, part in module.named_modules() if is_convolution(part)}
    order = list(convs)
    if watched is not None:
        position = {name: index for index, name in enumerate(watched.order)}
        order.sort(key=lambda name: position.get(name, len(position)))
    called = [name for name in order if watched is None or watched.counts[name]]
    plain = [name for name in called if type(convs[name]) is nn.Conv2d]
    ends = {plain[-1]: "last convolution", plain[0]: "first convolution"} if recipe.keep_first_last and plain else {}
    reasons = {name: ends.get(name) or _reason_to_keep(module, name, convs[name], recipe, watched) for name in convs}
    while True:
        chosen = [name for name in order if reasons[name] is None]
        if not chosen:
            listed = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:8]) or "it has none"
            raise SwapError(f"no convolution of {type(module).__name__} qualifies ({listed}); change the recipe")
        faults = _rehearse(module, chosen, method, recipe, watched, inputs) if inputs is not None else {}
        if not faults:
            break
        reasons |= faults
    notes = _replace(module, chosen, method, recipe, watched)
    if inputs is not None and method.needs_both_signs:
        _treat_rectifiers(module, recipe, inputs, notes)
    rows = [Row(name, _shape(convs[name]), name in notes, notes.get(name) or reasons[name] or "") for name in order]
    return SwapReport(
        rows=rows,
        others=_other_layers(module),
        rehearsed=watched is not None,
        unmatched=[pattern for pattern in (*recipe.include, *recipe.exclude) if not fnmatch.filter(convs, pattern)],
    )


def _rehearse(
    module: nn.Module, chosen: list[str], method: Method, recipe: Recipe, watched: Watched | None, example: Inputs
) -> dict[str, str]:
    """What does not work when the chosen convolutions are replaced, tried on a copy; random states stay as they are."""
    twin = twin_of(module)
    originals = {name: twin.get_submodule(name) for name in chosen}
    with torch.random.fork_rng(devices=[example[0].device.index or 0] if example[0].is_cuda else []):
        _replace(twin, chosen, method, recipe, watched)
        return rehearse(twin, originals, example)


def _treat_rectifiers(module: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...], notes: dict[str, str]) -> None:
    """Make the rectifiers in front of blind layers leaky, if the recipe says so, and say so in `notes`."""
    blind = find_blind(module, inputs)
    if recipe.rectifiers == "leaky":
        make_leaky(module, {name for name in blind.values() if name})
    for layer, name in blind.items():
        if not name:
            notes[layer] += "; blind: it sees no negative value, so its sign is +1 everywhere"
        elif recipe.rectifiers == "leaky":
            notes[layer] += f"; {name} in front of it is leaky now"
        else:
            notes[layer] += f"; blind behind {name}, where its sign is +1 everywhere: set rectifiers to leaky"


def _shape(conv: nn.Module) -> str:
    weight = conv.weight
    assert isinstance(weight, Tensor)
    return "not known yet" if isinstance(weight, UninitializedParameter) else "x".join(map(str, weight.shape))


def _reason_to_keep(
    module: nn.Module, name: str, conv: nn.Module, recipe: Recipe, watched: Watched | None
) -> str | None:
    """Why this convolution stays as it is, or None."""
    if not name:
        return "it is the network itself: wrap it in nn.Sequential"
    if type(conv) is not nn.Conv2d:
        kind = getattr(conv, "original_name", "") or type(conv).__name__
        if isinstance(conv, torch.jit.ScriptModule):
            return f"a scripted {kind}: binarize the network before it is scripted"
        if isinstance(conv.weight, UninitializedParameter):
            return f"a {kind} without a shape: run the network once before"
        return f"a {kind}, which may do more than nn.Conv2d"
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in recipe.include):
        return "not included by the recipe"
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in recipe.exclude):
        return "excluded by the recipe"
    if not isinstance(conv._parameters.get("weight"), nn.Parameter):
        return "its weight is computed in each call: call remove_weight_norm or remove_spectral_norm first"
    if conv._forward_pre_hooks or conv._forward_hooks or conv._backward_hooks or conv._backward_pre_hooks:
        return "it has hooks, which its replacement would lose: remove them first"
    if conv.groups != 1:
        return f"a grouped convolution ({conv.groups} groups)"
    if set(conv.dilation) != {1}:
        return f"a dilated convolution (by {conv.dilation[0]})"
    if conv.padding_mode != "zeros":
        return f"pads by {conv.padding_mode}, not zeros"
    if conv.padding == "same" and conv.kernel_size[0] % 2 == 0:
        return "pads by different numbers of zeros on two sides (same)"
    if any(len(set(pair)) != 1 for pair in (conv.kernel_size, conv.stride, _padding(conv))):
        return "kernel, stride and padding must be equal in both directions"
    if recipe.kernel_sizes is not None and conv.kernel_size[0] not in recipe.kernel_sizes:
        return f"kernel size {conv.kernel_size[0]} is not in the recipe's {list(recipe.kernel_sizes)}"
    if not conv.weight.requires_grad:
        return "its weight is frozen"
    names = [key for key, value in module.named_parameters(remove_duplicate=False) if value is conv.weight]
    if len(names) > 1:
        return f"its weight is also {next(key for key in names if key != f'{name}.weight')}"
    return watched.reason_to_keep(name) if watched is not None else None


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    """Zeros on each side in both directions, for a dilation of 1."""
    if isinstance(conv.padding, str):
        return tuple(size // 2 if conv.padding == "same" else 0 for size in conv.kernel_size)
    return conv.padding


def _replace(
    module: nn.Module, chosen: list[str], method: Method, recipe: Recipe, watched: Watched | None
) -> dict[str, str]:
    """Replace the chosen convolutions; name -> note for the report."""
    notes: dict[str, str] = {}
    layers: dict[str, GroupedLayer] = {}
    groups: list[Group] = []
    accumulates = method.accumulate or (recipe.accumulate_weights and WEIGHT_BINARIZERS[method.weight].accumulates)
    for members in _groups(module, chosen, recipe if accumulates else None, watched):
        group = None
        if len(members) > 1:
            scope = _scope(module, members, watched)
            group = Group(name=f"{members[0]} .. {members[-1]}", scope=scope, size=len(members))
            groups.append(group)
        for index, name in enumerate(members):
            conv = module.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            try:
                layers[name] = _layer(conv, method, recipe, group, index)
            except ValueError as error:
                raise SwapError(f"recipe: {error}") from error
            notes[name] = f"{index + 1} of {len(members)} in {group.name}" if group else "alone"
            if conv.kernel_size[0] % 2 == 0:
                notes[name] += f"; trains, but a kernel of even size {conv.kernel_size[0]} cannot be packed"
    # Nothing can fail from here on: the network is changed as a whole or not at all.
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        owner = module.get_submodule(parent)
        setattr(owner, child, layer)
        if watched is not None and name in watched.bypassed:
            keep_training_form(owner)
            notes[name] += f"; {parent or 'the network'} is evaluated in its training form"
    for group in groups:
        open_scope(module.get_submodule(group.scope), group)
    return notes


def _layer(conv: nn.Conv2d, method: Method, recipe: Recipe, group: Group | None, index: int) -> GroupedLayer:
    """The binary layer in place of `conv`, with its weight and bias."""
    layer = GroupedLayer(
        group=group,
        index=index,
        accumulate_weights=recipe.accumulate_weights,
        beta=recipe.scale() if group is not None and method.accumulate else None,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=conv.kernel_size[0],
        stride=conv.stride[0],
        padding=_padding(conv)[0],
        method=method,
        norm=recipe.norm,
        bias=conv.bias is not None,
        output_scale=recipe.output_scale,
        output_scale_init=recipe.output_scale_init,
    ).to(device=conv.weight.device, dtype=conv.weight.dtype)
    with torch.no_grad():
        layer.conv.weight.copy_(conv.weight * recipe.latent_gain)
        if conv.bias is not None and layer.bias is not None:
            layer.bias.copy_(conv.bias)
    return layer.train(conv.training)


def _groups(module: nn.Module, chosen: list[str], recipe: Recipe | None, watched: Watched | None) -> list[list[str]]:
    """The chosen names, in groups; without recipe each by itself."""
    if recipe is None or recipe.group == "none":
        return [[name] for name in chosen]
    groups: dict[Any, list[str]] = defaultdict(list)
    run, last = 0, None
    for name in chosen:
        conv = module.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        kind: tuple[Any, ...] = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, _padding(conv))
        if watched is not None:
            kind += (watched.maps[name],)
            if watched.counts[name] > 1:
                groups["repeated", name] = [name]
                continue
        if recipe.group == "parent":
            key: Any = (name.rpartition(".")[0], kind)
        elif recipe.group == "all":
            key = kind
        else:
            if kind != last or len(groups[run]) == recipe.group:
                run += 1
            key, last = run, kind
        groups[key].append(name)
    return [members for members in groups.values() if members]


def _scope(module: nn.Module, members: list[str], watched: Watched | None) -> str:
    """Name of the innermost module that contains all members and is called itself."""
    parts = [name.split(".")[:-1] for name in members]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    while common:
        name = ".".join(common)
        container = isinstance(module.get_submodule(name), (nn.ModuleList, nn.ModuleDict))
        if not container and (watched is None or name in watched.called):
            break
        common.pop()
    return ".".join(common)


def _other_layers(module: nn.Module) -> dict[str, int]:
    """Class name -> number of modules with own parameters that are no convolutions and no part of a binary layer."""
    counts: dict[str, int] = defaultdict(int)
    inside = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, GroupedLayer))
    for name, part in module.named_modules():
        if name.startswith(inside) or isinstance(part, GroupedLayer) or is_convolution(part):
            continue
        if next(part.parameters(recurse=False), None) is not None:
            counts[type(part).__name__] += 1
    return dict(counts)
