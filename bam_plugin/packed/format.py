"""The packed file of a network that runs without torch: its graph and arrays. `docs/packed_format.md` is the contract.

The writer is canonical: equal models give equal bytes, on every machine. The reader trusts nothing: `container.py`
checks the container and the checksum, `graph_builder.py` checks the network, and every fault has its own error class.
Words, lane orders and other matters of speed are made when a file is loaded. A file never stores them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from bam_plugin.files import atomic_path
from bam_plugin.packed.container import check_fields, digest, pack_container, unpack_container
from bam_plugin.packed.errors import InvalidGraphError, MixedFileError, PackedFormatError, UnexpectedTensorError
from bam_plugin.packed.graph import Graph, Node
from bam_plugin.packed.graph_builder import MAX_NODES, check_graph
from bam_plugin.packed.mixed_format import VERSION as MIXED_VERSION
from bam_plugin.packed.mixed_format import MixedModel, mixed_document, unpack_mixed
from bam_plugin.packed.ops import OPERATIONS
from bam_plugin.packed.precision import read_offers

_FIELDS = {"format_version", "graph", "info", "scale", "receptive_radius"}


@dataclass(frozen=True)
class PackedModel:
    """The content of a packed file: typed graph, arrays, and free facts (`metadata`).

    `metadata` is a JSON object: `network_g`, `source_sha256`, `training`, `metrics` and all other facts that the maker
    recorded. The constructor refuses tensors that no node uses; `check_graph` has checked the rest.
    """

    kind: ClassVar[str] = "graph"
    """The kind of engine that runs it, see `bam_plugin.engine.opening`."""
    graph: Graph
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        used = {name for node in self.graph.nodes for name in node.tensors.values()}
        extra = sorted(set(self.tensors) - used)
        if extra:
            raise UnexpectedTensorError(f"no node of the graph uses the tensors {extra[:8]}")

    @property
    def scale(self) -> int:
        """Magnification: output height over input height."""
        return self.graph.scale

    @property
    def num_in_ch(self) -> int:
        """Channels of the input image."""
        return self.graph.num_in_ch

    @property
    def num_out_ch(self) -> int:
        """Channels of the output."""
        return self.graph.num_out_ch

    @property
    def receptive_radius(self) -> int | None:
        """Input pixels around a pixel that decide its output; None with strides, see `unbounded`."""
        return self.graph.receptive_radius

    @property
    def unbounded(self) -> str:
        """Why there is no receptive radius, or an empty text."""
        multiple = self.graph.size_multiple
        return "" if multiple == 1 else f"strides divide the picture into blocks of {multiple} x {multiple} pixels"

    @property
    def sha256(self) -> str:
        """Content hash over graph, metadata and tensors: the name of this network. Equal content has equal hashes."""
        return digest(_document(self), self.tensors)

    @property
    def binary_bits(self) -> int:
        """Number of 1-bit weights, without the padding to whole bytes."""
        bits = 0
        for node in self.graph.nodes:
            if node.op == "binary_conv2d":
                filters = self.tensors[node.tensors["weight"]].shape[0]
                bits += filters * int(node.attrs["kernel"]) ** 2 * self.graph.types[node.inputs[0]].channels
        return bits


def format_version(graph: Graph) -> int:
    """The first version of the file that has all operations of a graph: 1, or 3 for the newer ones."""
    return max([1, *(OPERATIONS[node.op].version_of(node) for node in graph.nodes)])


def _document(model: PackedModel) -> dict:
    """The JSON metadata without its checksum."""
    graph = model.graph
    return {
        "format_version": format_version(graph),
        "scale": graph.scale,
        "receptive_radius": model.receptive_radius,
        "graph": {
            "num_in_ch": graph.num_in_ch,
            "output": graph.output,
            "nodes": [
                [node.op, node.name, list(node.inputs), dict(node.attrs), list(node.roles)] for node in graph.nodes
            ],
        },
        "info": dict(model.metadata),
    }


def pack_model(model: PackedModel | MixedModel) -> bytes:
    """The bytes of the packed file of `model`. Equal models give equal bytes.

    Raises InvalidPrecisionError if a reader would refuse the offers of precisions.
    """
    if isinstance(model, MixedModel):
        return pack_container(mixed_document(model), model.tensors)
    read_offers(model.graph, model.metadata)
    return pack_container(_document(model), model.tensors)


def write_packed(model: PackedModel | MixedModel, path: str | os.PathLike) -> None:
    """Write `model` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(pack_model(model))


def read_packed(path: str | os.PathLike) -> PackedModel:
    """Read and check a packed graph. Raises a `PackedFormatError` that names the fault, or OSError."""
    return unpack_model(Path(path).read_bytes(), where=str(path))


def read_model(path: str | os.PathLike) -> PackedModel | MixedModel:
    """Read and check a packed file of either kind, a graph or a mixed network; errors as in `read_packed`."""
    return unpack_any(Path(path).read_bytes(), where=str(path))


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read_nodes(graph: object) -> tuple[Node, ...]:
    if not isinstance(graph, dict) or set(graph) != {"num_in_ch", "output", "nodes"}:
        raise InvalidGraphError("the graph must have exactly the fields num_in_ch, nodes and output")
    if not isinstance(graph["nodes"], list) or not isinstance(graph["output"], str):
        raise InvalidGraphError("the graph's nodes must be a list and its output a name")
    if len(graph["nodes"]) > MAX_NODES:
        raise InvalidGraphError(f"the graph has {len(graph['nodes'])} nodes; at most {MAX_NODES} are allowed")
    nodes = []
    for index, item in enumerate(graph["nodes"]):
        if not isinstance(item, list) or len(item) != 5:
            raise InvalidGraphError(f"node {index} must be a list: op, name, inputs, attributes, tensor roles")
        op, name, inputs, attrs, roles = item
        if not (_is_strings([op, name]) and _is_strings(inputs) and isinstance(attrs, dict) and _is_strings(roles)):
            raise InvalidGraphError(f"node {index} has a name, input, attribute or tensor role of the wrong JSON type")
        nodes.append(Node(op, name, tuple(inputs), attrs, tuple(roles)))
    return tuple(nodes)


def unpack_model(data: bytes, *, where: str = "packed data") -> PackedModel:
    """Read a packed graph from the bytes of its file; `where` names their origin in messages."""
    model = unpack_any(data, where=where)
    if isinstance(model, MixedModel):
        raise MixedFileError(
            f"{where}: a packed graph was expected, found a mixed network, which runs in torch; use `bam upscale`, "
            "`bam test`, Upscaler, or bam_plugin.mixed.mixed_engine.MixedEngine"
        )
    return model


def unpack_any(data: bytes, *, where: str = "packed data") -> PackedModel | MixedModel:
    """Read a packed file of either kind from its bytes; `where` names their origin in messages."""
    try:
        document, tensors = unpack_container(data)
        if document["format_version"] == MIXED_VERSION:
            return unpack_mixed(document, tensors)
        return _unpack_graph(document, tensors)
    except PackedFormatError as error:
        raise type(error)(f"{where}: {error}") from error


def _unpack_graph(document: dict, tensors: Mapping[str, np.ndarray]) -> PackedModel:
    check_fields(document, _FIELDS)
    nodes = _read_nodes(document["graph"])
    graph = check_graph(
        num_in_ch=document["graph"]["num_in_ch"], nodes=nodes, output=document["graph"]["output"], tensors=tensors
    )
    read_offers(graph, document["info"])  # refuses what no engine could use
    model = PackedModel(graph=graph, tensors=tensors, metadata=document["info"])
    if document["format_version"] != format_version(graph):
        raise InvalidGraphError(
            f"states format version {document['format_version']}, its operations have version {format_version(graph)}"
        )
    if (document["scale"], document["receptive_radius"]) != (model.scale, model.receptive_radius):
        raise InvalidGraphError(
            f"states scale {document['scale']} and receptive radius {document['receptive_radius']}, "
            f"the graph has {model.scale} and {model.receptive_radius}"
        )
    return model
