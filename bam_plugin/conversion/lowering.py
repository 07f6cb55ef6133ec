"""Lower a PyTorch network to a packed graph: trace it, fold what depends on parameters alone, lower the rest.

The network is traced in evaluation mode with its layers as leaves, so no network needs an exporter of its own. Values
that follow from parameters only (accumulated filters, learned factors) are computed here. Each remaining call becomes
one operation of `packed/ops` by the tables of `lowering_ops.py`. A call without an entry there is an error that names
the module.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bam_plugin.conversion.layer_report import LayerRow, layer_rows
from bam_plugin.conversion.lowering_emitter import Emitter, Magnitude, Value
from bam_plugin.conversion.lowering_ops import FUNCTIONS, METHODS, MODULES
from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.packed.errors import ConversionError, PackedFormatError
from bam_plugin.packed.graph import Graph


class _Called(nn.Module):
    """Calls a network. fx traces the forward of its root without the root's hooks; the network is no root here."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        return self.network(x)


class _Tracer(fx.Tracer):
    """Traces a _Called; modules have their names in the network."""

    def path_of_module(self, mod: nn.Module) -> str:
        return super().path_of_module(mod).removeprefix("network").removeprefix(".")

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BinaryConv2d) or super().is_leaf_module(m, module_qualified_name)


class _Lowering:
    """Walks a traced network and feeds an emitter."""

    def __init__(self, *, network: nn.Module, num_in_ch: int):
        self.network = network
        self.emit = Emitter(num_in_ch=num_in_ch)

    def run(self) -> Graph:
        # A forward may assign to its module (EDSR: self.mean = self.mean.type_as(x)). So trace a copy and keep values
        # here.
        twin = _Called(copy.deepcopy(self.network))
        try:
            traced = _Tracer().trace(twin)
        except Exception as error:
            raise ConversionError(
                f"{type(self.network).__name__} cannot be traced as one fixed graph "
                f"(its forward depends on the image): {error}"
            ) from error
        known: dict[fx.Node, Any] = {}
        for node in traced.nodes:
            if node.op == "placeholder":
                known[node] = Value(self.emit.builder.input)
            elif node.op == "get_attr":
                path = operator.attrgetter(str(node.target))
                try:
                    known[node] = path(_Called(self.network))
                except AttributeError:  # a tensor made inside forward: the tracer keeps it on the copy
                    known[node] = path(twin)
            elif node.op == "output":
                result = fx.map_arg(node.args[0], known.__getitem__)
                if not isinstance(result, Value):
                    raise ConversionError(f"{type(self.network).__name__} does not return one picture")
                return self.emit.builder.finish(result.name)
            else:
                known[node] = self._call(node, known)
        raise ConversionError(f"{type(self.network).__name__} returns nothing")

    def _call(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        args = fx.map_arg(node.args, known.__getitem__)
        kwargs = fx.map_arg(node.kwargs, known.__getitem__)
        stack = node.meta.get("nn_module_stack") or {}
        module_path = next(reversed(stack)).partition("@")[0] if stack else ""  # PATH@N: its call number N
        self.emit.layer = str(node.target) if node.op == "call_module" else module_path
        self.emit.where = self.emit.layer if node.op == "call_module" else f"{module_path}.{node.name}".lstrip(".")
        dynamic = _find_values((args, kwargs))
        if node.op == "call_module":
            module = self.network.get_submodule(str(node.target))
            if not dynamic:
                raise ConversionError(f"{self.emit.where}: a layer that does not depend on the image is not supported")
            handler = next((make for kind, make in MODULES.items() if isinstance(module, kind)), None)
            if handler is None:
                raise ConversionError(f"{self.emit.where}: {type(module).__name__} has no packed counterpart")
            return self._guard(lambda: handler(self.emit, module, *args, **kwargs))
        if not dynamic:
            target = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
            rest = args[1:] if node.op == "call_method" else args
            with torch.no_grad():
                return target(*rest, **kwargs)  # type: ignore[operator]
        table = METHODS if node.op == "call_method" else FUNCTIONS
        handler = table.get(node.target)  # type: ignore[call-overload]
        if handler is None:
            name = getattr(node.target, "__name__", node.target)
            raise ConversionError(f"{self.emit.where}: the call {name!r} on feature maps has no packed counterpart")
        return self._guard(lambda: handler(self.emit, *args, **kwargs))

    def _guard(self, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (PackedFormatError, TypeError) as error:
            raise ConversionError(f"{self.emit.where}: cannot be lowered ({error})") from error


def _find_values(tree: Any) -> bool:
    if isinstance(tree, dict):
        return any(_find_values(item) for item in tree.values())
    if isinstance(tree, list | tuple):
        return any(_find_values(item) for item in tree)
    return isinstance(tree, Value | Magnitude)


def lower_network(network: nn.Module, *, num_in_ch: int) -> tuple[Graph, dict[str, np.ndarray], list[LayerRow]]:
    """Turn a network into a checked packed graph, its tensors, and one report row per layer with parameters.

    `network` maps (N, num_in_ch, H, W) to (N, C, H * scale, W * scale). A copy of it is lowered, in evaluation mode.
    Raises ConversionError, which names the module that cannot be lowered.
    """
    lowering = _Lowering(network=copy.deepcopy(network).float().eval(), num_in_ch=num_in_ch)
    graph = lowering.run()
    emit = lowering.emit
    tensors = emit.builder.tensors
    rows = layer_rows(lowering.network, graph, tensors, layers=emit.layers, notes=emit.notes)
    return graph, tensors, rows
