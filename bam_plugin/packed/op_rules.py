"""What each operation of a packed graph accepts and makes: one small function per operation, in the table `OPS`.

The builder and the file reader use the same table, so a graph that was read from a file is checked exactly as one that
is being built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np

from bam_plugin.packed.errors import InvalidGraphError, MissingTensorError, TensorShapeError
from bam_plugin.packed.graph import ALPHABETS, Node, ValueType, packed_filter_bytes

MAX_CHANNELS = 1 << 16
MAX_KERNEL = 31
MAX_UP = 16  # largest magnification inside a graph, so that a forged file cannot ask for endless memory
_LARGEST = float(np.finfo(np.float32).max)


class _Call:
    """What an op's checker sees: the node, its operands' types and the tensors' arrays."""

    def __init__(self, *, node: Node, types: Mapping[str, ValueType], tensors: Mapping[str, np.ndarray]):
        self.node = node
        self.tensors = tensors
        try:
            self.inputs = [types[name] for name in node.inputs]
        except KeyError as error:
            raise self.fault(f"uses the value {error} before any node made it") from None
        self._seen_attrs: set[str] = set()
        self._seen_roles: set[str] = set()

    def fault(self, text: str) -> InvalidGraphError:
        return InvalidGraphError(f"node {self.node.name!r} ({self.node.op}) {text}")

    def operands(self, *kinds: str) -> list[ValueType]:
        found = [value.kind for value in self.inputs]
        if found != list(kinds):
            raise self.fault(f"takes operands {list(kinds)}, found {found}")
        return self.inputs

    def integer(self, name: str, low: int, high: int) -> int:
        self._seen_attrs.add(name)
        value = self.node.attrs.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self.fault(f"needs the attribute {name} as an integer from {low} to {high}, found {value!r}")
        return value

    def number(self, name: str) -> float:
        self._seen_attrs.add(name)
        value = self.node.attrs.get(name)
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= _LARGEST
            and float(np.float32(value)) == value
        ):
            return float(value)
        raise self.fault(f"needs the attribute {name} as a float32 number, found {value!r}")

    def choice(self, name: str, options: tuple[str, ...]) -> str:
        self._seen_attrs.add(name)
        value = self.node.attrs.get(name)
        if not isinstance(value, str) or value not in options:
            raise self.fault(f"needs the attribute {name} as one of {list(options)}, found {value!r}")
        return value

    def has(self, role: str) -> bool:
        return role in self.node.roles

    def tensor(self, role: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
        self._seen_roles.add(role)
        if role not in self.node.roles:
            raise self.fault(f"needs a tensor for its {role}")
        name = self.node.tensors[role]
        if name not in self.tensors:
            raise MissingTensorError(f"node {self.node.name!r} needs the tensor {name!r}, which is not in the file")
        array = self.tensors[name]
        fits = len(array.shape) == len(shape) and all(
            want is None or want == have for want, have in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            wanted = tuple("any" if want is None else want for want in shape)
            raise TensorShapeError(
                f"tensor {name!r} ({role} of node {self.node.name!r}): expected {np.dtype(dtype)} of shape {wanted}, "
                f"found {array.dtype} of shape {array.shape}"
            )
        # A threshold may be infinite, for a sign that is always the same.
        if dtype == np.float32 and role != "threshold" and not np.isfinite(array).all():
            raise TensorShapeError(
                f"tensor {name!r} ({role} of node {self.node.name!r}) has values that are not finite; its training has "
                "failed or the file is forged"
            )
        return array

    def finish(self) -> None:
        for kind, seen, given in (
            ("attributes", self._seen_attrs, self.node.attrs),
            ("tensors", self._seen_roles, self.node.roles),
        ):
            unknown = sorted(set(given) - seen)
            if unknown:
                raise self.fault(f"has {kind} that the op does not know: {unknown}")


def _grown(value: ValueType, kernel: int) -> Fraction:
    return value.radius + Fraction(kernel // 2, value.up)


def _channels(call: _Call, channels: int) -> int:
    if not 1 <= channels <= MAX_CHANNELS:
        raise call.fault(f"makes {channels} channels; 1 to {MAX_CHANNELS} are allowed")
    return channels


def _conv2d(call: _Call) -> ValueType:
    (value,) = call.operands("float")
    weight = call.tensor("weight", np.float32, (None, value.channels, None, None))
    out, _, kernel, width = weight.shape
    if kernel != width or kernel % 2 == 0 or kernel > MAX_KERNEL:
        raise call.fault(f"needs a square kernel of odd size up to {MAX_KERNEL}, found {kernel}x{width}")
    if call.has("bias"):
        call.tensor("bias", np.float32, (out,))
    return ValueType("float", _channels(call, out), value.up, _grown(value, kernel))


def _binary_conv2d(call: _Call) -> ValueType:
    (value,) = call.operands("signs")
    kernel = call.integer("kernel", 1, MAX_KERNEL)
    if kernel % 2 == 0:
        raise call.fault(f"needs a kernel of odd size, found {kernel}")
    weight = call.tensor("weight", np.uint8, (None, packed_filter_bytes(value.channels, kernel)))
    call.tensor("scale", np.float32, (weight.shape[0],))
    call.choice("alphabet", ALPHABETS)
    bits = value.channels * kernel * kernel
    if bits % 8 and np.any(weight[:, -1] >> (bits % 8)):
        raise call.fault("has padding bits that are not 0 in its packed weights")
    return ValueType("float", _channels(call, weight.shape[0]), value.up, _grown(value, kernel))


def _threshold(call: _Call) -> ValueType:
    (value,) = call.operands("float")
    threshold = call.tensor("threshold", np.float32, (value.channels,))
    flip = call.tensor("flip", np.uint8, (value.channels,))
    if np.isnan(threshold).any() or (flip > 1).any():
        raise call.fault("needs thresholds that are numbers and flips of 0 or 1")
    return ValueType("signs", value.channels, value.up, value.radius)


def _pointwise(call: _Call) -> ValueType:
    (value,) = call.operands("float")
    return value


def _leaky_relu(call: _Call) -> ValueType:
    call.number("slope")
    return _pointwise(call)


def _scale(call: _Call) -> ValueType:
    call.number("factor")
    return _pointwise(call)


def _clamp(call: _Call) -> ValueType:
    if call.number("low") > call.number("high"):
        raise call.fault("has its attribute low above high")
    return _pointwise(call)


def _prelu(call: _Call) -> ValueType:
    (value,) = call.operands("float")
    call.tensor("slope", np.float32, (value.channels,))
    return value


def _affine(call: _Call) -> ValueType:
    (value,) = call.operands("float")
    call.tensor("scale", np.float32, (value.channels,))
    call.tensor("shift", np.float32, (value.channels,))
    return value


def _binary_pointwise(call: _Call) -> ValueType:
    left, right = call.operands("float", "float")
    if left.up != right.up or (left.channels != right.channels and 1 not in (left.channels, right.channels)):
        raise call.fault(f"joins maps of different sizes: {left} and {right}")
    channels = max(left.channels, right.channels)
    return ValueType("float", channels, left.up, max(left.radius, right.radius))


def _channel_mean(call: _Call) -> ValueType:
    (value,) = call.operands("float")
    call.choice("statistic", ("mean", "mean_abs"))
    return ValueType("float", 1, value.up, value.radius)


def _pixel_shuffle(call: _Call) -> ValueType:
    (value,) = call.operands("float")
    factor = call.integer("factor", 1, MAX_UP)
    if value.channels % factor**2 or value.up * factor > MAX_UP:
        raise call.fault(f"cannot rearrange {value.channels} channels at magnification {value.up} by {factor}")
    return ValueType("float", value.channels // factor**2, value.up * factor, value.radius)


def _resize(call: _Call) -> ValueType:
    (value,) = call.operands("float")
    factor = call.integer("factor", 1, MAX_UP)
    reach = {"nearest": 0, "bilinear": 1, "bicubic": 2}[call.choice("mode", ("nearest", "bilinear", "bicubic"))]
    if value.up * factor > MAX_UP:
        raise call.fault(f"magnifies by more than {MAX_UP}")
    return ValueType("float", value.channels, value.up * factor, value.radius + Fraction(reach, value.up))


OPS: Mapping[str, Callable[[_Call], ValueType]] = {
    "conv2d": _conv2d,
    "binary_conv2d": _binary_conv2d,
    "threshold": _threshold,
    "relu": _pointwise,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "affine": _affine,
    "add": _binary_pointwise,
    "mul": _binary_pointwise,
    "scale": _scale,
    "clamp": _clamp,
    "channel_mean": _channel_mean,
    "pixel_shuffle": _pixel_shuffle,
    "resize": _resize,
}


def infer_type(node: Node, types: Mapping[str, ValueType], tensors: Mapping[str, np.ndarray]) -> ValueType:
    """The type of what a node makes; raises InvalidGraphError, MissingTensorError or TensorShapeError."""
    if node.op not in OPS:
        raise InvalidGraphError(f"node {node.name!r} has the unknown op {node.op!r}; known: {sorted(OPS)}")
    if node.name in types:
        raise InvalidGraphError(f"two nodes are called {node.name!r}, or one as the input")
    call = _Call(node=node, types=types, tensors=tensors)
    result = OPS[node.op](call)
    call.finish()
    return result
