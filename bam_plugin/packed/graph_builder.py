"""Checks packed graphs, and builds them node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bam_plugin.packed.errors import InvalidGraphError
from bam_plugin.packed.graph import INPUT, Graph, Node, ValueType
from bam_plugin.packed.ops import MAX_CHANNELS, infer_type

MAX_NODES = 20_000


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
        types[node.name] = infer_type(node, types, tensors)
    if output not in types or output == INPUT or types[output].kind != "float":
        raise InvalidGraphError(f"the output {output!r} is not a float map made by a node")
    if types[output].up != int(types[output].up):
        raise InvalidGraphError(f"the output {output!r} is smaller than the input, which no packed network is")
    dead = len(nodes) - len(needed_nodes(nodes, output))
    if dead:
        raise InvalidGraphError(f"{dead} nodes make values that the output {output!r} does not need")
    return Graph(num_in_ch=num_in_ch, nodes=nodes, output=output, types=types)


def needed_nodes(nodes: Sequence[Node], output: str) -> tuple[Node, ...]:
    """The nodes that `output` depends on, in order of execution."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


class GraphBuilder:
    """Builds a graph node by node and collects its tensors. It checks every node that it adds.

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
        """Add a node with the name `name`, or a similar one if that is taken. Returns the name of its output value.

        `tensors` maps roles to arrays, which are stored as `NAME.ROLE`.
        """
        unique, count = name, 1
        while unique in self.types:
            count += 1
            unique = f"{name}:{count}"
        tensors = tensors or {}
        for role, array in tensors.items():
            self.tensors[f"{unique}.{role}"] = np.ascontiguousarray(array)
        node = Node(op=op, name=unique, inputs=inputs, attrs=dict(attrs or {}), roles=tuple(sorted(tensors)))
        self.types[unique] = infer_type(node, self.types, self.tensors)
        self._nodes.append(node)
        return unique

    def finish(self, output: str) -> Graph:
        """Return the checked graph without the nodes that `output` does not need, and without their tensors."""
        nodes = needed_nodes(self._nodes, output)
        used = {name for node in nodes for name in node.tensors.values()}
        self.tensors = {name: array for name, array in self.tensors.items() if name in used}
        return check_graph(num_in_ch=self._num_in_ch, nodes=nodes, output=output, tensors=self.tensors)
