"""The graph of a packed network: typed values, and nodes in order of execution that each make one of them.

Values are either float maps (H, W, C) or sign maps (packed bits of the same H, W, C). The records in `ops/` say what an
operation accepts, makes and computes. `graph_builder.py` checks graphs against them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

INPUT = "input"  # name of the graph's one input value
ALPHABETS = ("-1,+1", "0,1")  # the values of bit 1 and bit 0 of an activation


@dataclass(frozen=True)
class ValueType:
    """Type of a value: `kind` is "float" or "signs"; `up` is its height and width over those of the input image.

    `up` is a fraction behind a stride. `radius` is the receptive radius so far, in input pixels (exact fraction).
    """

    kind: str
    channels: int
    up: int | Fraction
    radius: Fraction = Fraction(0)

    def length(self, pixels: int) -> int:
        """Rows (or columns) of the value for a number of input rows, a multiple of the graph's `size_multiple`."""
        return int(pixels * self.up)


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
        return int(self.types[self.output].up)

    @functools.cached_property
    def size_multiple(self) -> int:
        """Heights and widths of the input are multiples of this, 1 without strides.

        A runner repeats the last row and column of other pictures as far as needed, and cuts the result.
        """
        return math.lcm(*(Fraction(value.up).denominator for value in self.types.values()))

    @property
    def receptive_radius(self) -> int | None:
        """Input pixels around a pixel that its output can depend on, rounded up.

        It is None with strides, because then a result also depends on where the picture begins.
        """
        return math.ceil(self.types[self.output].radius) if self.size_multiple == 1 else None

    @property
    def num_out_ch(self) -> int:
        """Channels of the output."""
        return self.types[self.output].channels


def packed_filter_bytes(channels: int, kernel: int) -> int:
    """Bytes of one packed binary filter: all its kernel*kernel*channels bits in a row, padded to a whole byte."""
    return (kernel * kernel * channels + 7) // 8
