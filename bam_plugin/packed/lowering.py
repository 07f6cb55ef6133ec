"""From a PyTorch network to a packed graph: trace with torch.fx, fold what depends on parameters alone, lower the rest.

The network is traced in evaluation mode with its layers as leaves, so no network needs an exporter of its own. Values
that follow from parameters only (accumulated filters, learned factors) are computed here and now; each remaining
call becomes one op of `graph.py` by the tables at the end of this module. What has no entry there is an error that
names the module, never a guess.

This module, `activation_steps.py`, `layer_report.py`, `converter.py` and `verify.py` are the parts of `packed` that
need torch.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bam_plugin.nn.activations import ActivationBinarizer, FloatActivation, XNORSign
from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.packed.activation_steps import activation_steps, finite_array, norm_affine
from bam_plugin.packed.errors import ConversionError, PackedFormatError
from bam_plugin.packed.graph import Graph, GraphBuilder
from bam_plugin.packed.layer_report import LayerRow, layer_rows
from bam_plugin.packed.reference import pack_filters


@dataclass(frozen=True)
class _Value:
    """A value of the packed graph, as opposed to a Python object or tensor that is known already."""

    name: str


@dataclass(frozen=True)
class _Magnitude:
    """|value|: exists only inside a channel mean."""

    value: _Value


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BinaryConv2d) or super().is_leaf_module(m, module_qualified_name)


def _square(value: Any) -> int | None:
    """The one number of a (possibly doubled) convolution setting, None if it has two different ones."""
    pair = value if isinstance(value, tuple) else (value, value)
    return pair[0] if len(set(pair)) == 1 and isinstance(pair[0], int) else None


class _Lowering:
    """Walks a traced network and feeds a GraphBuilder."""

    def __init__(self, *, network: nn.Module, num_in_ch: int):
        self.network = network
        self.builder = GraphBuilder(num_in_ch=num_in_ch)
        self.where = ""
        self.layer = ""  # the module at work
        self.layers: dict[str, str] = {}  # node of the graph -> its layer
        self.notes: dict[str, str] = {}  # layer -> what the report says of it

    def run(self) -> Graph:
        # A forward may assign to its module (EDSR: self.mean = self.mean.type_as(x)): trace a copy, keep values here.
        twin = copy.deepcopy(self.network)
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
                if any(isinstance(value, _Value) for value in known.values()):
                    if not node.args:
                        raise ConversionError(f"{type(self.network).__name__} takes more than one input: {node.name}")
                    known[node] = node.args[0]
                else:
                    known[node] = _Value(self.builder.input)
            elif node.op == "get_attr":
                path = operator.attrgetter(str(node.target))
                try:
                    known[node] = path(self.network)
                except AttributeError:  # a tensor made inside forward: the tracer keeps it on the copy
                    known[node] = path(twin)
            elif node.op == "output":
                result = fx.map_arg(node.args[0], known.__getitem__)
                if not isinstance(result, _Value):
                    raise ConversionError(f"{type(self.network).__name__} does not return one picture")
                return self.builder.finish(result.name)
            else:
                known[node] = self._call(node, known)
        raise ConversionError(f"{type(self.network).__name__} returns nothing")

    def _call(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        args = fx.map_arg(node.args, known.__getitem__)
        kwargs = fx.map_arg(node.kwargs, known.__getitem__)
        stack = node.meta.get("nn_module_stack") or {}
        module_path = next(reversed(stack)).partition("@")[0] if stack else ""  # PATH@N: its call number N
        self.layer = str(node.target) if node.op == "call_module" else module_path
        self.where = self.layer if node.op == "call_module" else f"{module_path}.{node.name}".lstrip(".")
        dynamic = _find_values((args, kwargs))
        if node.op == "call_module":
            module = self.network.get_submodule(str(node.target))
            if not dynamic:
                raise ConversionError(f"{self.where}: a layer that does not depend on the image is not supported")
            handler = next((make for kind, make in _MODULES.items() if isinstance(module, kind)), None)
            if handler is None:
                raise ConversionError(f"{self.where}: {type(module).__name__} has no packed counterpart")
            return self._guard(lambda: handler(self, module, *args, **kwargs))
        if not dynamic:
            target = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
            rest = args[1:] if node.op == "call_method" else args
            with torch.no_grad():
                return target(*rest, **kwargs)  # type: ignore[operator]
        table = _METHODS if node.op == "call_method" else _FUNCTIONS
        handler = table.get(node.target)  # type: ignore[call-overload]
        if handler is None:
            name = getattr(node.target, "__name__", node.target)
            raise ConversionError(f"{self.where}: the call {name!r} on feature maps has no packed counterpart")
        return self._guard(lambda: handler(self, *args, **kwargs))

    def _guard(self, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (PackedFormatError, TypeError) as error:
            raise ConversionError(f"{self.where}: cannot be lowered ({error})") from error

    def add(
        self,
        op: str,
        *inputs: _Value,
        name: str | None = None,
        attrs: dict[str, Any] | None = None,
        tensors: dict[str, np.ndarray] | None = None,
    ) -> _Value:
        names = (value.name for value in inputs)
        made = self.builder.add(op, name or self.where, *names, attrs=attrs, tensors=tensors)
        self.layers[made] = self.layer
        return _Value(made)

    def channels(self, value: _Value) -> int:
        return self.builder.types[value.name].channels

    # Layers

    def conv(self, module: nn.Conv2d, x: _Value) -> _Value:
        kernel = _square(module.kernel_size)
        same = kernel is not None and _square(module.padding) == kernel // 2
        if (
            not same
            or (_square(module.stride), _square(module.dilation), module.groups) != (1, 1, 1)
            or module.padding_mode != "zeros"
        ):
            raise ConversionError(
                f"{self.where}: only square convolutions of stride 1, dilation 1, one group and zero padding that "
                f"keeps the size can be packed, found {module}"
            )
        tensors = {"weight": finite_array(module.weight, self.where)}
        if module.bias is not None:
            tensors["bias"] = finite_array(module.bias, self.where)
        return self.add("conv2d", x, tensors=tensors)

    def binary_conv(self, module: BinaryConv2d, x: _Value, previous: tuple[Tensor, ...] = ()) -> _Value:
        """Sum over the activation's and the weight's bases, in the order of BinaryConv2d's evaluation."""
        if module.stride != 1 or module.padding != module.kernel_size // 2:
            raise ConversionError(f"{self.where}: only stride 1 with size-keeping padding can be packed")
        activation = module.binarize_activation
        pairs = module.decompose(previous)
        if isinstance(activation, FloatActivation):
            terms = (signs * scale.view(-1, 1, 1, 1) for signs, scale in pairs)
            weight = finite_array(functools.reduce(operator.add, terms), self.where)
            self.notes[self.layer] = "not packed: float activations"
            return self.add("conv2d", x, tensors={"weight": weight})
        filters = [pack_filters(signs.cpu().numpy().transpose(0, 2, 3, 1) < 0) for signs, _ in pairs]
        attrs = {"kernel": module.kernel_size, "alphabet": activation.alphabet}
        total = None
        for signs_in, factor in self._signs(activation, x):
            for packed, (_, scale) in zip(filters, pairs, strict=True):
                scaled = finite_array(scale if factor is None else scale * factor, self.where)
                tensors = {"weight": packed, "scale": np.broadcast_to(scaled, packed.shape[:1])}
                term = self.add("binary_conv2d", signs_in, attrs=attrs, tensors=tensors)
                total = term if total is None else self.add("add", total, term)
        assert total is not None
        # A second activation base needs its own scales and so, in the file, its own copy of the filters.
        bases = f" in {len(filters)} bases" if len(filters) > 1 else ""
        copies = f", {activation.bases} copies" if activation.bases > 1 else ""
        self.notes[self.layer] = f"packed{bases}{copies}"
        if isinstance(activation, XNORSign):
            total = self.add("mul", total, self._window_mean(activation, x, module.kernel_size))
        return total

    def _signs(self, activation: ActivationBinarizer, x: _Value) -> list[tuple[_Value, Tensor | None]]:
        """One sign map per base of the activation, with its factor."""
        path = f"{self.where}.binarize_activation"
        return [
            (self.add("threshold", x, name=path, tensors={"threshold": threshold, "flip": flip}), factor)
            for threshold, flip, factor in activation_steps(activation, self.channels(x), path)
        ]

    def _window_mean(self, activation: XNORSign, x: _Value, kernel: int) -> _Value:
        """The mean over a convolution's window of the mean magnitude of the normalized input."""
        scale, shift = norm_affine(activation.norm, self.where)
        normalized = self.add("affine", x, name=f"{self.where}.normalized", tensors={"scale": scale, "shift": shift})
        mean = self.add("channel_mean", normalized, name=f"{self.where}.magnitude", attrs={"statistic": "mean_abs"})
        window = np.full((1, 1, kernel, kernel), 1 / kernel**2, dtype=np.float32)
        return self.add("conv2d", mean, name=f"{self.where}.window", tensors={"weight": window})

    def norm(self, module: nn.BatchNorm2d, x: _Value) -> _Value:
        scale, shift = norm_affine(module, self.where)
        return self.add("affine", x, tensors={"scale": scale, "shift": shift})

    def prelu(self, module: nn.PReLU, x: _Value) -> _Value:
        slope = np.broadcast_to(finite_array(module.weight, self.where), (self.channels(x),))
        return self.add("prelu", x, tensors={"slope": slope})

    def leaky_relu(self, x: _Value, negative_slope: float = 0.01, inplace: bool = False) -> _Value:
        return self.add("leaky_relu", x, attrs={"slope": float(np.float32(negative_slope))})

    def relu(self, x: _Value, inplace: bool = False) -> _Value:
        return self.add("relu", x)

    def clamp(self, x: _Value, low: float, high: float) -> _Value:
        limit = np.finfo(np.float32).max  # an open side is bounded by the largest float, which changes no finite value
        low, high = (float(np.float32(min(max(bound, -limit), limit))) for bound in (low, high))
        return self.add("clamp", x, attrs={"low": low, "high": high})

    def pixel_shuffle(self, x: _Value, upscale_factor: int) -> _Value:
        return self.add("pixel_shuffle", x, attrs={"factor": int(upscale_factor)})

    def interpolate(
        self,
        x: _Value,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        antialias: bool = False,
    ) -> _Value:
        factor = scale_factor[0] if isinstance(scale_factor, tuple) and len(set(scale_factor)) == 1 else scale_factor
        plain = size is None and not align_corners and not antialias
        if not plain or not isinstance(factor, int | float) or factor != int(factor):
            raise ConversionError(
                f"{self.where}: only interpolation by one integer factor, align_corners off, can pack"
            )
        return self.add("resize", x, attrs={"factor": int(factor), "mode": mode})

    # Arithmetic

    def plus(self, left: Any, right: Any, *, alpha: Any = 1) -> _Value:
        right = self.times(right, alpha) if isinstance(right, _Value) else right * alpha
        if isinstance(left, _Value) and isinstance(right, _Value):
            return self.add("add", left, right)
        value, constant = (left, right) if isinstance(left, _Value) else (right, left)
        shift = self._per_channel(constant, value)
        return (
            self.add("affine", value, tensors={"scale": np.ones_like(shift), "shift": shift})
            if np.any(shift)
            else value
        )

    def minus(self, left: Any, right: Any) -> _Value:
        return self.plus(left, self.times(right, -1) if isinstance(right, _Value) else -right)

    def times(self, left: Any, right: Any) -> _Value:
        if isinstance(left, _Value) and isinstance(right, _Value):
            return self.add("mul", left, right)
        value, constant = (left, right) if isinstance(left, _Value) else (right, left)
        factors = self._per_channel(constant, value)
        if np.all(factors == factors[0]):
            return value if factors[0] == 1 else self.add("scale", value, attrs={"factor": float(factors[0])})
        return self.add("affine", value, tensors={"scale": factors, "shift": np.zeros_like(factors)})

    def divide(self, left: _Value, right: Any) -> _Value:
        if not isinstance(left, _Value) or isinstance(right, _Value):
            raise ConversionError(f"{self.where}: division by a feature map cannot be packed")
        return self.times(left, 1 / right)

    def negate(self, x: _Value) -> _Value:
        return self.times(x, -1)

    def _per_channel(self, constant: Any, value: _Value) -> np.ndarray:
        """A constant operand as one float32 per channel of `value`."""
        channels = self.channels(value)
        array = finite_array(torch.as_tensor(constant), self.where)
        if array.size != 1 and (array.size != channels or array.shape[-3:] != (channels, 1, 1)):
            raise ConversionError(f"{self.where}: a constant of shape {array.shape} does not fit {channels} channels")
        return np.broadcast_to(array.reshape(-1), (channels,))

    def magnitude(self, x: _Value) -> _Magnitude:
        return _Magnitude(x)

    def mean(self, x: _Value | _Magnitude, dim: Any = None, keepdim: bool = False) -> _Value:
        if dim not in (1, [1], (1,), -3) or not keepdim:
            raise ConversionError(f"{self.where}: only the mean over channels (dim=1, keepdim=True) can be packed")
        if isinstance(x, _Magnitude):
            return self.add("channel_mean", x.value, attrs={"statistic": "mean_abs"})
        return self.add("channel_mean", x, attrs={"statistic": "mean"})


def _find_values(tree: Any) -> bool:
    if isinstance(tree, dict):
        return any(_find_values(item) for item in tree.values())
    if isinstance(tree, list | tuple):
        return any(_find_values(item) for item in tree)
    return isinstance(tree, _Value | _Magnitude)


_Handler = Callable[..., Any]
_MODULES: dict[type[nn.Module], _Handler] = {
    BinaryConv2d: _Lowering.binary_conv,
    nn.Conv2d: _Lowering.conv,
    nn.BatchNorm2d: _Lowering.norm,
    nn.ReLU: lambda self, module, x: self.relu(x),
    nn.LeakyReLU: lambda self, module, x: self.leaky_relu(x, module.negative_slope),
    nn.PReLU: _Lowering.prelu,
    nn.Hardtanh: lambda self, module, x: self.clamp(x, module.min_val, module.max_val),
    nn.PixelShuffle: lambda self, module, x: self.pixel_shuffle(x, module.upscale_factor),
    nn.Upsample: lambda self, module, x: self.interpolate(
        x, module.size, module.scale_factor, module.mode, module.align_corners
    ),
    nn.Identity: lambda self, module, x: x,
    nn.Dropout: lambda self, module, x: x,
    nn.Dropout2d: lambda self, module, x: x,
}
_FUNCTIONS: dict[Any, _Handler] = {
    operator.add: _Lowering.plus,
    operator.iadd: _Lowering.plus,
    torch.add: _Lowering.plus,
    operator.sub: _Lowering.minus,
    torch.sub: _Lowering.minus,
    operator.mul: _Lowering.times,
    operator.imul: _Lowering.times,
    torch.mul: _Lowering.times,
    operator.truediv: _Lowering.divide,
    torch.div: _Lowering.divide,
    operator.neg: _Lowering.negate,
    torch.abs: _Lowering.magnitude,
    torch.mean: _Lowering.mean,
    torch.relu: _Lowering.relu,
    F.relu: _Lowering.relu,
    F.leaky_relu: _Lowering.leaky_relu,
    F.pixel_shuffle: _Lowering.pixel_shuffle,
    F.interpolate: _Lowering.interpolate,
    torch.clamp: lambda self, x, min=-math.inf, max=math.inf: self.clamp(x, min, max),
}
_METHODS: dict[Any, _Handler] = {
    "add": _Lowering.plus,
    "add_": _Lowering.plus,
    "sub": _Lowering.minus,
    "mul": _Lowering.times,
    "mul_": _Lowering.times,
    "div": _Lowering.divide,
    "abs": _Lowering.magnitude,
    "mean": _Lowering.mean,
    "relu": _Lowering.relu,
    "clamp": lambda self, x, min=-math.inf, max=math.inf: self.clamp(x, min, max),
    "contiguous": lambda self, x: x,
    # A constant that follows the image's dtype and device stays what it is; so does the image.
    "type_as": lambda self, x, other: x,
    "to": lambda self, x, *args, **kwargs: x,
}


def lower_network(network: nn.Module, *, num_in_ch: int) -> tuple[Graph, dict[str, np.ndarray], list[LayerRow]]:
    """Turn a network into a checked packed graph, its tensors, and one report row per layer with parameters.

    `network` maps (N, num_in_ch, H, W) to (N, C, H * scale, W * scale); it is copied and put in evaluation mode.
    Raises ConversionError naming the module that cannot be lowered.
    """
    lowering = _Lowering(network=copy.deepcopy(network).float().eval(), num_in_ch=num_in_ch)
    graph = lowering.run()
    tensors = lowering.builder.tensors
    rows = layer_rows(lowering.network, graph, tensors, layers=lowering.layers, notes=lowering.notes)
    return graph, tensors, rows
