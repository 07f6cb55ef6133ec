"""The operations of packed graphs in float, for runtimes that know no bits: one twin for ONNX and one for PyTorch each.

A twin translates one node. `onnx_export.Export` (e) and `torch_graph.Translation` (t) walk the graph and offer what
twins need: the node's arrays by role, its operands, constants per channel. Signs are floats: -1 and +1, or 0 and 1.
The reader of a threshold makes its map (`signs_of`), because it knows the alphabet. A twin that is one call of the
runtime is one line of the table.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bam_plugin.packed.bits import unpack_filters
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import Node
from bam_plugin.packed.ops.sizes import CUBIC

Arrays = Mapping[str, np.ndarray]


class Export(Protocol):
    """What a twin for ONNX writes with: `onnx_export.Export`."""

    model: PackedModel
    whole_dots: bool  # round dot products to the integers that they are

    def add(self, op: str, inputs: Sequence[str], result: str, **attributes: Any) -> str:
        """Add an ONNX node that makes `result`, and return that name."""
        ...

    def constant(self, name: str, array: np.ndarray) -> str:
        """Keep an array under a name, and return the name."""
        ...

    def per_channel(self, name: str, array: np.ndarray) -> str:
        """A constant (C,) in the shape that serves every pixel."""
        ...

    def signs_of(self, conv: Node) -> str:
        """The float map that a binary convolution reads."""
        ...


@dataclass(frozen=True)
class Twin:
    """One operation in ONNX and in PyTorch.

    `onnx(export, node, arrays, name)` adds nodes to an ONNX graph, the last one called `name`. `torch(translation,
    node, arrays, *operands)` returns the value in a torch.fx graph.
    """

    onnx: Callable[[Export, Node, Arrays, str], object]
    torch: Callable[..., Any]


def sign_values(node: Node, model: PackedModel, alphabet: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of a threshold's channels where x >= t, and elsewhere: two float32 (C,), with the flips in them."""
    low = np.float32(-1 if alphabet == "-1,+1" else 0)
    flip = model.tensors[node.tensors["flip"]].astype(bool)
    return np.where(flip, low, np.float32(1)), np.where(flip, np.float32(1), low)


def float_filters(node: Node, model: PackedModel) -> np.ndarray:
    """The filters of a binary convolution as float32 (O, I, k, k) of -1 and +1."""
    channels = model.graph.types[node.inputs[0]].channels
    negative = unpack_filters(model.tensors[node.tensors["weight"]], int(node.attrs["kernel"]), channels)
    return np.ascontiguousarray(np.where(negative, np.float32(-1), np.float32(1)).transpose(0, 3, 1, 2))


def _onnx_binary_conv(e: Export, node: Node, arrays: Arrays, name: str) -> None:
    signs, weight = e.signs_of(node), e.constant(f"{name}.weight", float_filters(node, e.model))
    scale = e.per_channel(f"{name}.scale", arrays["scale"])
    dot = e.add("Conv", [signs, weight], f"{name}.dot", pads=[int(node.attrs["kernel"]) // 2] * 4)
    if e.whole_dots:
        dot = e.add("Round", [dot], f"{name}.whole")
    e.add("Mul", [dot, scale], name)


def _torch_binary_conv(t: Any, node: Node, arrays: Arrays) -> Any:
    filters = t.buffer(float_filters(node, t.model), t.dtype)
    dot = t.call(t.F.conv2d, t.signs_of(node), filters, padding=int(node.attrs["kernel"]) // 2)
    return t.call(operator.mul, dot, t.per_channel(arrays["scale"]))


def _onnx_conv(e: Export, node: Node, arrays: Arrays, name: str) -> None:
    operands = [e.constant(f"{name}.{role}", arrays[role]) for role in ("weight", "bias") if role in arrays]
    how: dict[str, Any] = {"pads": [arrays["weight"].shape[2] // 2] * 4}
    if "groups" in node.attrs:
        how["group"] = int(node.attrs["groups"])
    if "stride" in node.attrs:
        how["strides"] = [int(node.attrs["stride"])] * 2
    e.add("Conv", [*node.inputs, *operands], name, **how)


def _torch_conv(t: Any, node: Node, arrays: Arrays, x: Any) -> Any:
    weight, bias = (t.buffer(arrays[role], t.dtype) if role in arrays else None for role in ("weight", "bias"))
    how = {name: int(node.attrs[name]) for name in ("groups", "stride") if name in node.attrs}
    return t.rounded(t.call(t.F.conv2d, t.reduced(x), weight, bias, padding=arrays["weight"].shape[2] // 2, **how))


def _onnx_affine(e: Export, node: Node, arrays: Arrays, name: str) -> None:
    product = e.add("Mul", [*node.inputs, e.per_channel(f"{name}.scale", arrays["scale"])], f"{name}.product")
    e.add("Add", [product, e.per_channel(f"{name}.shift", arrays["shift"])], name)


def _torch_affine(t: Any, node: Node, arrays: Arrays, x: Any) -> Any:
    product = t.call(operator.mul, x, t.per_channel(arrays["scale"]))
    return t.call(operator.add, product, t.per_channel(arrays["shift"]))


def _onnx_scale(e: Export, node: Node, arrays: Arrays, name: str) -> None:
    e.add("Mul", [*node.inputs, e.constant(f"{name}.factor", np.array(node.attrs["factor"], np.float32))], name)


def _onnx_clamp(e: Export, node: Node, arrays: Arrays, name: str) -> None:
    limits = [e.constant(f"{name}.{side}", np.array(node.attrs[side], np.float32)) for side in ("low", "high")]
    e.add("Clip", [*node.inputs, *limits], name)


def _onnx_mean(e: Export, node: Node, arrays: Arrays, name: str) -> None:
    inputs = list(node.inputs)
    if node.attrs["statistic"] == "mean_abs":
        inputs = [e.add("Abs", inputs, f"{name}.abs")]
    e.add("ReduceMean", inputs, name, axes=[1], keepdims=1)


def _torch_mean(t: Any, node: Node, arrays: Arrays, x: Any) -> Any:
    values = t.call(operator.abs, x) if node.attrs["statistic"] == "mean_abs" else x
    return t.call(t.torch.mean, values, dim=1, keepdim=True)


def _onnx_resize(e: Export, node: Node, arrays: Arrays, name: str) -> None:
    factor, mode = int(node.attrs["factor"]), str(node.attrs["mode"])
    scales = e.constant(f"{name}.scales", np.array([1, 1, factor, factor], dtype=np.float32))
    how: dict[str, Any] = {"mode": {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}[mode]}
    if mode == "nearest":
        how |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        how |= {
            "coordinate_transformation_mode": "half_pixel",
            "cubic_coeff_a": float(node.attrs.get("coefficient", CUBIC)),
        }
    e.add("Resize", [node.inputs[0], "", scales], name, **how)


def _torch_resize(t: Any, node: Node, arrays: Arrays, x: Any) -> Any:
    if "coefficient" in node.attrs:
        return t.call(t.bicubic, x, int(node.attrs["factor"]), float(node.attrs["coefficient"]))
    how = {"mode": node.attrs["mode"]} | ({} if node.attrs["mode"] == "nearest" else {"align_corners": False})
    return t.call(t.F.interpolate, x, scale_factor=float(node.attrs["factor"]), **how)


TWINS: Mapping[str, Twin] = {
    "binary_conv2d": Twin(_onnx_binary_conv, _torch_binary_conv),
    "conv2d": Twin(_onnx_conv, _torch_conv),
    "relu": Twin(lambda e, n, a, name: e.add("Relu", n.inputs, name), lambda t, n, a, x: t.call(t.F.relu, x)),
    "leaky_relu": Twin(
        lambda e, n, a, name: e.add("LeakyRelu", n.inputs, name, alpha=float(n.attrs["slope"])),
        lambda t, n, a, x: t.call(t.F.leaky_relu, x, float(n.attrs["slope"])),
    ),
    "prelu": Twin(
        lambda e, n, a, name: e.add("PRelu", [*n.inputs, e.per_channel(f"{name}.slope", a["slope"])], name),
        lambda t, n, a, x: t.call(t.F.prelu, x, t.buffer(a["slope"])),
    ),
    "affine": Twin(_onnx_affine, _torch_affine),
    "add": Twin(lambda e, n, a, name: e.add("Add", n.inputs, name), lambda t, n, a, x, y: t.call(operator.add, x, y)),
    "mul": Twin(lambda e, n, a, name: e.add("Mul", n.inputs, name), lambda t, n, a, x, y: t.call(operator.mul, x, y)),
    "cat": Twin(
        lambda e, n, a, name: e.add("Concat", n.inputs, name, axis=1),
        lambda t, n, a, x, y: t.call(t.torch.cat, (x, y), dim=1),
    ),
    "scale": Twin(_onnx_scale, lambda t, n, a, x: t.call(operator.mul, x, float(n.attrs["factor"]))),
    "clamp": Twin(
        _onnx_clamp, lambda t, n, a, x: t.call(t.torch.clamp, x, float(n.attrs["low"]), float(n.attrs["high"]))
    ),
    "channel_mean": Twin(_onnx_mean, _torch_mean),
    "pixel_shuffle": Twin(
        lambda e, n, a, name: e.add("DepthToSpace", n.inputs, name, blocksize=int(n.attrs["factor"]), mode="CRD"),
        lambda t, n, a, x: t.call(t.F.pixel_shuffle, x, int(n.attrs["factor"])),
    ),
    "resize": Twin(_onnx_resize, _torch_resize),
}
