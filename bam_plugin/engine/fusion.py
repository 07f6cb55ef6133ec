"""Find the nodes of a graph that run as one operation on a tile.

Five patterns are recognised, all of them exact: the fused operation rounds where its parts do. Nodes in parentheses may
be missing.

- cat + conv2d: the convolution reads two maps.
- binary_conv2d + add: the convolution adds onto the identity path.
- binary_conv2d (+ add) + threshold: the sum becomes bits in a register. It is stored only if it is read again.
- int_conv2d + quantize, and any convolution (+ quantize) + pixel_shuffle: the channels are made in the shuffle's order.
- channel_mean + scale (+ affine by an offset) + mul (+ add) (+ threshold): a weighed term of an accumulated activation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from bam_plugin.packed.graph import Graph, Node
from bam_plugin.packed.ops import OPERATIONS

CONVOLUTIONS = ("binary_conv2d", "conv2d", "depthwise_conv2d", "grouped_conv2d", "int_conv2d")


@dataclass
class TileOp:
    """One operation on a tile: the kernel with the name `kind` and its arguments (see `packed.ops.Tile`).

    `in0`, `in1`, `out0`, `out1` are names of values; roles as in csrc/bam.h. `weights` holds a convolution's tensors by
    role, `signs` those of a threshold in it. `spread`: the factor of the pixel shuffle behind a convolution, which
    makes its channels in the order (row, column, channel).
    """

    kind: str
    in0: str
    out0: str | None
    in1: str | None = None
    out1: str | None = None
    kernel: int = 1
    floats: tuple[float, ...] = ()
    integers: tuple[int, ...] = ()
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    signs: Mapping[str, np.ndarray] = field(default_factory=dict)
    alphabet: str = "-1,+1"
    spread: int = 1
    reach: int | None = None  # rows around a row that `around` is read at; None where only the pixel itself is
    zoom: int | Fraction = 1

    @property
    def inputs(self) -> list[str]:
        """Names of the values that it reads."""
        return [name for name in (self.in0, self.in1) if name is not None]

    @property
    def outputs(self) -> list[str]:
        """Names of the values that it makes."""
        return [name for name in (self.out0, self.out1) if name is not None]

    @property
    def operands(self) -> list[str]:
        """The operands of a convolution or a resize. The other inputs are added to its result."""
        joined = self.kind == "conv2d" and self.in1 is not None  # channels of two maps
        return [self.in0, str(self.in1)] if joined else [self.in0]

    @property
    def around(self) -> list[str]:
        """Names of the values that it reads at neighbouring pixels."""
        return [] if self.reach is None else self.operands

    def overwritable(self) -> list[str]:
        """Values that `out0` may be written over: they are read at the place that is written next, and then no more."""
        if self.kind == "binary_conv2d":
            return [self.in1] if self.in1 is not None else []
        return self.inputs if self.kind == "weigh" else []


def _base_op(node: Node, graph: Graph, tensors: Mapping[str, np.ndarray]) -> TileOp:
    """The operation of one node alone."""
    arrays = {role: tensors[name] for role, name in node.tensors.items()}
    tile = OPERATIONS[node.op].tile(node, [graph.types[name] for name in node.inputs], arrays)
    operands = node.inputs[::-1] if tile.swap else node.inputs
    op = TileOp(
        tile.kernel_name or node.op,
        operands[0],
        node.name,
        kernel=tile.kernel,
        floats=tile.floats,
        integers=tile.integers,
    )
    op.in1 = operands[1] if len(operands) > 1 else None
    op.channels, op.tables, op.weights = tile.channels, tile.tables, tile.weights
    op.alphabet, op.reach, op.zoom = tile.alphabet, tile.reach, tile.zoom
    if node.op == "threshold":
        op.channels, op.signs = {}, arrays
    return op


class _Fuser:
    """Goes over the graph once, and notes which nodes join others and what runs in their place."""

    def __init__(self, *, graph: Graph, tensors: Mapping[str, np.ndarray]):
        self.graph = graph
        self.tensors = tensors
        self.nodes = {node.name: node for node in graph.nodes}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for name in set(node.inputs):
                self.readers[name].append(node)
        self.absorbed: set[str] = set()
        self.replaced: dict[str, TileOp] = {}  # by the node at whose place the fused operation runs

    def only_reader(self, name: str) -> Node | None:
        """The one node that reads the value, if there is exactly one and nobody outside reads it."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name != self.graph.output else None

    def run(self) -> list[TileOp]:
        for node in self.graph.nodes:
            if node.op == "binary_conv2d":
                self.fuse_conv(node)
            elif node.op == "mul":
                self.fuse_weight(node)
            elif node.op in ("conv2d", "int_conv2d") and "groups" not in node.attrs:
                self.fuse_spread(node)
        ops = []
        for node in self.graph.nodes:
            if node.name in self.replaced:
                ops.append(self.replaced[node.name])
            elif node.name not in self.absorbed:
                ops.append(_base_op(node, self.graph, self.tensors))
        return ops

    def read_both(self, node: Node, op: TileOp) -> TileOp:
        """Let a convolution read the two maps that a `cat` for it alone would join."""
        (value,) = node.inputs
        joined = self.nodes.get(value)
        if op.kind == "conv2d" and joined is not None and joined.op == "cat" and self.only_reader(value) is not None:
            op.in0, op.in1 = joined.inputs
            op.integers = (op.integers[0], self.graph.types[op.in1].channels, *op.integers[2:])
            self.absorbed.add(value)
        return op

    def fuse_conv(self, node: Node) -> None:
        self.extend(node, _base_op(node, self.graph, self.tensors))

    def fuse_spread(self, node: Node) -> None:
        """A convolution's quantised result, and its channels in the order in which a pixel shuffle takes them."""
        op, value = self.read_both(node, _base_op(node, self.graph, self.tensors)), node.name
        reader = self.only_reader(value)
        if node.op == "int_conv2d" and reader is not None and reader.op == "quantize":
            quantize = _base_op(reader, self.graph, self.tensors)
            op.out0, op.out1, op.floats = None, reader.name, quantize.floats
            op.channels = quantize.channels
            self.absorbed.add(value)
            value = reader.name
            reader = self.only_reader(value)
        if reader is not None and reader.op == "pixel_shuffle":
            shuffle = _base_op(reader, self.graph, self.tensors)
            op.spread = shuffle.integers[0]
            shuffle.integers = (op.spread, 1)
            self.replaced[reader.name] = shuffle
        self.replaced[value] = op

    def extend(self, node: Node, op: TileOp) -> None:
        """Let `op`, which makes the value of `node`, take over an addition and a threshold behind it."""
        value = node.name
        reader = self.only_reader(value)
        if reader is not None and reader.op == "add" and reader.name not in self.replaced:
            left, right = reader.inputs
            other = right if left == value else left
            if left != right and self.graph.types[other].channels == self.graph.types[value].channels:
                op.in1, op.out0 = other, reader.name
                self.absorbed.add(value)
                value = reader.name
        threshold = next((reader for reader in self.readers[value] if reader.op == "threshold"), None)
        if threshold is not None:
            op.out1 = threshold.name
            op.signs = {role: self.tensors[name] for role, name in threshold.tensors.items()}
            self.absorbed.add(threshold.name)
        self.replaced[value] = op

    def fuse_weight(self, node: Node) -> None:
        for value, factor in (node.inputs, node.inputs[::-1]):
            chain: list[Node] = []  # from the factor back to the mean
            while len(chain) < 3 and factor in self.nodes and self.only_reader(factor) is not None:
                chain.append(self.nodes[factor])
                factor = chain[-1].inputs[0]
                if chain[-1].op == "channel_mean":
                    break
            kinds = [item.op for item in chain]
            if kinds not in (["scale", "channel_mean"], ["affine", "scale", "channel_mean"]) or factor != value:
                continue
            offset = -0.0  # adding it changes no number, not even a zero
            if kinds[0] == "affine":
                if self.tensors[chain[0].tensors["scale"]][0] != 1:
                    continue
                offset = float(self.tensors[chain[0].tensors["shift"]][0])
            mean = _base_op(chain[-1], self.graph, self.tensors)
            floats = (mean.floats[0], float(chain[-2].attrs["factor"]), offset)
            self.absorbed.update(item.name for item in chain)
            self.extend(node, TileOp("weigh", value, node.name, floats=floats, integers=mean.integers))
            return


def tile_ops(graph: Graph, tensors: Mapping[str, np.ndarray], *, fuse: bool = True) -> list[TileOp]:
    """The operations of a graph in order of execution; one per node with `fuse=False`."""
    if not fuse:
        return [_base_op(node, graph, tensors) for node in graph.nodes]
    return _Fuser(graph=graph, tensors=tensors).run()
