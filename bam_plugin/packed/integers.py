"""A packed network on integers: its graph rewritten for one precision.

Each convolution with ranges in the offer becomes `quantize` and `int_conv2d`, two operations that never stand in a
file. If a pixel shuffle for this convolution alone makes the operand, the rounding comes before it, so the enlarged map
has small integers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from bam_plugin.packed.errors import EngineError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import Node, ValueType
from bam_plugin.packed.precision import FLOAT, Offer, check_precision, quantise_weights, read_offers


def at_precision(model: PackedModel, precision: str) -> PackedModel:
    """The network as the engine runs it at `precision`; the model itself for fp32.

    Raises EngineError if the name is unknown or the file does not offer it.
    """
    if check_precision(precision) == FLOAT:
        return model
    offers = read_offers(model.graph, model.metadata)
    if precision not in offers:
        raise EngineError(
            f"the file does not offer {precision}, only {[FLOAT, *offers]}; add it with `bam quantize FILE --calibrate "
            f"FOLDER --benchmarks FOLDER --precision {precision}`, or use fp32"
        )
    return with_integers(model, offers[precision])


def with_integers(model: PackedModel, offer: Offer) -> PackedModel:
    """Rewrite the convolutions that have ranges in `offer`."""
    return _Rewriter(model=model, offer=offer).run()


class _Rewriter:
    def __init__(self, *, model: PackedModel, offer: Offer):
        self._model, self._offer = model, offer
        self._nodes: dict[str, Node] = {node.name: node for node in model.graph.nodes}  # in order of execution
        self._before: dict[str, list[Node]] = {}  # what is put in front of a node
        self._tensors: dict[str, np.ndarray] = dict(model.tensors)
        self._types: dict[str, ValueType] = dict(model.graph.types)
        self._readers = Counter(name for node in model.graph.nodes for name in node.inputs)
        self._readers[model.graph.output] += 1

    def run(self) -> PackedModel:
        for name, ranges in self._offer.ranges.items():
            self._rewrite(self._nodes[name], ranges)
        nodes = tuple(made for node in self._nodes.values() for made in (*self._before.get(node.name, ()), node))
        graph = replace(self._model.graph, nodes=nodes, types=self._types)
        used = {name for node in nodes for name in node.tensors.values()}
        tensors = {name: array for name, array in self._tensors.items() if name in used}
        return PackedModel(graph=graph, tensors=tensors, metadata=self._model.metadata)

    def _rewrite(self, node: Node, ranges: tuple[float, ...]) -> None:
        weight = self._tensors[node.tensors["weight"]]
        integers, scale, inverse = quantise_weights(weight, ranges, self._offer.kind)
        if "bias" in node.roles:
            bias = self._tensors[node.tensors["bias"]]
        else:
            bias = np.full(len(weight), -0.0, dtype=np.float32)  # adding it changes no number
        value = self._quantised(node, inverse)
        self._put(Node("int_conv2d", node.name, (value,)), weight=integers, scale=scale, bias=bias)

    def _quantised(self, conv: Node, inverse: np.ndarray) -> str:
        """Put a `quantize` before `conv` and return the name of the integers."""
        (value,) = conv.inputs
        shuffle = self._nodes.get(value)
        if shuffle is None or shuffle.op != "pixel_shuffle" or self._readers[value] > 1:
            return self._insert(conv, value, inverse)
        inner = self._insert(shuffle, shuffle.inputs[0], np.repeat(inverse, int(shuffle.attrs["factor"]) ** 2))
        self._nodes[value] = replace(shuffle, inputs=(inner,))
        self._types[value] = replace(self._types[value], kind=self._offer.kind.name)
        return value

    def _insert(self, before: Node, value: str, inverse: np.ndarray) -> str:
        name = f"{before.name}.quantize"
        while name in self._types:
            name += "'"
        self._types[name] = replace(self._types[value], kind=self._offer.kind.name)
        made = Node("quantize", name, (value,), {"limit": self._offer.kind.activation})
        self._put(made, before=before.name, inverse=inverse)
        return name

    def _put(self, node: Node, *, before: str | None = None, **tensors: np.ndarray) -> None:
        """Add a node in front of another, or replace the one of its name."""
        node = replace(node, roles=tuple(sorted(tensors)))
        self._tensors.update({node.tensors[role]: array for role, array in tensors.items()})
        if before is None:
            self._nodes[node.name] = node
        else:
            self._before.setdefault(before, []).append(node)
