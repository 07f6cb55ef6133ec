"""The few operations that a packed network is made of, and the graph that joins them.

A graph is a list of nodes in order of execution; each node takes earlier values and makes one new value. Values are
either float maps (H, W, C) or sign maps (packed bits of the same H, W, C). What an op accepts and makes is one small
function in the table `OPS`; `GraphBuilder` and the file reader use the same table, so a graph that was read from a
file is checked exactly as one that is being built. Meaning and rounding of each op: `reference.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from bam_plugin.packed.errors import InvalidGraphError, MissingTensorError, TensorShapeError

INPUT = "input"  # name of the graph's one input value
ALPHABETS = ("-1,+1", "0,1")  # what bit 1 and bit 0 of an activation stand for
MAX_NODES = 100_000
MAX_CHANNELS = 1 << 16
MAX_KERNEL = 31
_LARGEST = float(np.finfo(np.float32).max)
MAX_UP = 16  # largest magnification inside a graph, so that a forged file cannot ask for endless memory


@dataclass(frozen=True)
class ValueType:
    """Type of a value: `kind` is "float" or "signs"; `up` is its height and width over those of the input image.

    `radius` is the receptive radius so far, in input pixels (exact fraction).
    """

    kind: str
    channels: int
    up: int
    radius: Fraction = Fraction(0)


@dataclass(frozen=True)
class Node:
    """One operation. Its result is called by its `name`; `roles` are its tensors, stored as `NAME.ROLE`."""

    op: str
    name: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, int | float | str] = field(default_factory=dict)
    roles: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The name of the value that the node makes."""
        return self.name

    @property
    def tensors(self) -> dict[str, str]:
        """The names of the node's tensors in the file, by role."""
        return {role: f"{self.name}.{role}" for role in self.roles}


@dataclass(frozen=True)
class Graph:
    """A checked graph. `types` holds the type of every value, the input's included."""

    num_in_ch: int
    nodes: tuple[Node, ...]
    output: str
    types: Mapping[str, ValueType]

    @property
    def scale(self) -> int:
        """Output height over input height."""
        return self.types[self.output].up

    @property
    def receptive_radius(self) -> int:
        """Input pixels around a pixel that its output can depend on, rounded up."""
        return math.ceil(self.types[self.output].radius)

    @property
    def num_out_ch(self) -> int:
        """Channels of the output."""
        return self.types[self.output].channels


def packed_filter_bytes(channels: int, kernel: int) -> int:
    """Bytes of one packed binary filter: all its kernel*kernel*channels bits in a row, padded to a whole byte."""
    return (kernel * kernel * channels + 7) // 8


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


def _infer(node: Node, types: Mapping[str, ValueType], tensors: Mapping[str, np.ndarray]) -> ValueType:
    if node.op not in OPS:
        raise InvalidGraphError(f"node {node.name!r} has the unknown op {node.op!r}; known: {sorted(OPS)}")
    if node.name in types:
        raise InvalidGraphError(f"two nodes are called {node.name!r}, or one as the input")
    call = _Call(node=node, types=types, tensors=tensors)
    result = OPS[node.op](call)
    call.finish()
    return result


def check_graph(*, num_in_ch: int, nodes: tuple[Node, ...], output: str, tensors: Mapping[str, np.ndarray]) -> Graph:
    """Check every node against the tensors and return the typed graph.

    Raises InvalidGraphError, MissingTensorError or TensorShapeError, each naming the node.
    """
    if type(num_in_ch) is not int or not 1 <= num_in_ch <= MAX_CHANNELS:
        raise InvalidGraphError(f"num_in_ch must be an integer from 1 to {MAX_CHANNELS}, found {num_in_ch!r}")
    if len(nodes) > MAX_NODES:
        raise InvalidGraphError(f"the graph has {len(nodes)} nodes; at most {MAX_NODES} are allowed")
    types = {INPUT: ValueType("float", num_in_ch, 1)}
    for node in nodes:
        types[node.name] = _infer(node, types, tensors)
    if output not in types or types[output].kind != "float":
        raise InvalidGraphError(f"the output {output!r} is not a float map made by a node")
    return Graph(num_in_ch=num_in_ch, nodes=nodes, output=output, types=types)


class GraphBuilder:
    """Builds a graph node by node and collects its tensors; every node is checked when it is added.

    >>> builder = GraphBuilder(num_in_ch=3)
    >>> value = builder.add("relu", "act", builder.input)
    >>> graph = builder.finish(value)
    """

    def __init__(self, *, num_in_ch: int):
        self.input = INPUT
        self.tensors: dict[str, np.ndarray] = {}
        self.types: dict[str, ValueType] = {INPUT: ValueType("float", num_in_ch, 1)}
        self._num_in_ch = num_in_ch
        self._nodes: list[Node] = []

    def add(
        self,
        op: str,
        name: str,
        *inputs: str,
        attrs: Mapping[str, int | float | str] | None = None,
        tensors: Mapping[str, np.ndarray] | None = None,
    ) -> str:
        """Add a node called `name` (made unique if taken) and return the name of its output value.

        `tensors` maps roles to arrays; they are stored as `NAME.ROLE`.
        """
        unique, count = name, 1
        while unique in self.types:
            count += 1
            unique = f"{name}:{count}"
        tensors = tensors or {}
        for role, array in tensors.items():
            self.tensors[f"{unique}.{role}"] = np.ascontiguousarray(array)
        node = Node(op=op, name=unique, inputs=inputs, attrs=dict(attrs or {}), roles=tuple(sorted(tensors)))
        self.types[unique] = _infer(node, self.types, self.tensors)
        self._nodes.append(node)
        return unique

    def finish(self, output: str) -> Graph:
        """Return the checked graph; nodes that `output` does not need are left out, with their tensors."""
        needed, kept = {output}, []
        for node in reversed(self._nodes):
            if node.name in needed:
                needed.update(node.inputs)
                kept.append(node)
        nodes = tuple(reversed(kept))
        used = {name for node in nodes for name in node.tensors.values()}
        self.tensors = {name: array for name, array in self.tensors.items() if name in used}
        return check_graph(num_in_ch=self._num_in_ch, nodes=nodes, output=output, tensors=self.tensors)
