"""One operation of a packed graph: the record `Operation`, and the arguments of its functions.

The builder and the file reader use the same records. So a graph from a file passes the same checks as a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from bam_plugin.packed.errors import InvalidGraphError, MissingTensorError, TensorShapeError
from bam_plugin.packed.graph import Node, ValueType

MAX_CHANNELS = 1 << 16
MAX_KERNEL = 31
MAX_UP = 16  # largest magnification inside a graph, so that a forged file cannot ask for endless memory
MAX_DOWN = 16  # largest reduction by strides
MAX_NUMBERS = 1 << 16  # of one value for each pixel of the input
_LARGEST = float(np.finfo(np.float32).max)


class Call:
    """The argument of an operation's check: the node, the types of its operands and the arrays of its tensors.

    Its methods read one field each and raise InvalidGraphError, MissingTensorError or TensorShapeError. `finish`
    refuses a field that the check has not read.
    """

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
        """An error that names the node."""
        return InvalidGraphError(f"node {self.node.name!r} ({self.node.op}) {text}")

    def operands(self, *kinds: str) -> list[ValueType]:
        """The operands, which must be of these kinds."""
        found = [value.kind for value in self.inputs]
        if found != list(kinds):
            raise self.fault(f"takes operands {list(kinds)}, found {found}")
        return self.inputs

    def integer(self, name: str, low: int, high: int) -> int:
        """An attribute that is an integer from `low` to `high`."""
        self._seen_attrs.add(name)
        value = self.node.attrs.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self.fault(f"needs the attribute {name} as an integer from {low} to {high}, found {value!r}")
        return value

    def more_than_one(self, name: str, high: int) -> int:
        """An attribute that is an integer from 2 to `high`, or missing and then 1."""
        return self.integer(name, 2, high) if name in self.node.attrs else 1

    def number(self, name: str) -> float:
        """An attribute that is a finite float32 number."""
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
        """An attribute that is one of some words."""
        self._seen_attrs.add(name)
        value = self.node.attrs.get(name)
        if not isinstance(value, str) or value not in options:
            raise self.fault(f"needs the attribute {name} as one of {list(options)}, found {value!r}")
        return value

    def has(self, role: str) -> bool:
        """Whether the node has a tensor of this role."""
        return role in self.node.roles

    def tensor(self, role: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
        """A tensor of this dtype and shape (None: any size), finite unless it is a threshold."""
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

    def channels(self, count: int) -> int:
        """A number of channels that a value may have."""
        if not 1 <= count <= MAX_CHANNELS:
            raise self.fault(f"makes {count} channels; 1 to {MAX_CHANNELS} are allowed")
        return count

    def finish(self) -> None:
        """Refuse fields that the check has not read."""
        for kind, seen, given in (
            ("attributes", self._seen_attrs, self.node.attrs),
            ("tensors", self._seen_roles, self.node.roles),
        ):
            unknown = sorted(set(given) - seen)
            if unknown:
                raise self.fault(f"has {kind} that the op does not know: {unknown}")


@dataclass(frozen=True)
class Tile:
    """The arguments of a kernel besides its operands, as plain values.

    `floats` and `integers` fill the fields f0.. and i0.. of an operation in C, `channels` (one number per channel) and
    then `tables` the pointers p0... Only the convolutions have arrays of a layout of their own, `weights`.
    `kernel_name`: the kernel, if an operation has several. `swap`: the kernel takes the operands in the other order.
    `reach`: rows around a row at which the kernel reads the operand; None if it reads only the pixel itself. `zoom`:
    rows of the result for each row of the operand.
    """

    floats: tuple[float, ...] = ()
    integers: tuple[int, ...] = ()
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    kernel: int = 1
    alphabet: str = "-1,+1"
    kernel_name: str | None = None
    swap: bool = False
    reach: int | None = None
    zoom: int | Fraction = 1


Arrays = Mapping[str, np.ndarray]


def _same(call: Call) -> ValueType:
    (value,) = call.operands("float")
    return value


def per_channel(node: Node, operands: list[ValueType], arrays: Arrays) -> Tile:
    """The tile of an operation whose tensors, if any, hold one number per channel."""
    return Tile(channels=arrays)


@dataclass(frozen=True)
class Operation:
    """One operation of packed graphs.

    `check(call)` reads the node's fields and returns the type of its value. `reference(*operands, **attributes,
    **tensors)` computes it on whole maps, and is the truth for every kernel. `tile(node, operand types, arrays by
    role)` gives the arguments of the kernel of the same name in csrc/tile_ops.h. `version`: the first version of the
    file that has it; `newer`: attributes that a later version has added. `counts_channels`: the reference takes the
    operand's `channels`, too. `stored`: it may stand in a file.
    """

    name: str
    reference: Callable[..., np.ndarray]
    check: Callable[[Call], ValueType] = _same
    tile: Callable[[Node, list[ValueType], Arrays], Tile] = per_channel
    version: int = 1
    newer: Mapping[str, int] = field(default_factory=dict)
    counts_channels: bool = False
    stored: bool = True

    def version_of(self, node: Node) -> int:
        """The first version of the file in which this node can stand."""
        return max([self.version, *(self.newer.get(name, 1) for name in node.attrs)])


def grown(value: ValueType, kernel: int) -> Fraction:
    """The receptive radius behind a convolution of this kernel."""
    return value.radius + Fraction(kernel // 2) / value.up


def whole(up: int | Fraction) -> int | Fraction:
    """A magnification as an integer where it is one."""
    return int(up) if up == int(up) else up
