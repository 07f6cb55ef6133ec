"""The packed file: a safetensors container with one metadata key. `docs/packed_format.md` is its contract.

The writer is canonical: equal models give equal bytes, on every machine. The reader trusts nothing: safetensors checks
the container, `graph.py` the network, a SHA-256 the content, and every fault has its own error class. Words, lane
orders and other matters of speed are made when a file is loaded and never stored.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bam_plugin._files import atomic_path
from bam_plugin.packed.errors import (
    ChecksumError,
    InvalidGraphError,
    NewerVersionError,
    NotPackedError,
    PackedFormatError,
    TruncatedFileError,
    UnexpectedTensorError,
)
from bam_plugin.packed.graph import Graph, Node, check_graph

FORMAT_VERSION = 1
METADATA_KEY = "bam"
MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
_DTYPES = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
_NAMES = {np.dtype("float32"): "F32", np.dtype("uint8"): "U8"}
_FIELDS = {"format_version", "graph", "info", "scale", "receptive_radius", "sha256"}


@dataclass(frozen=True)
class PackedModel:
    """A network as a packed file holds it: typed graph, arrays, and free facts about it (`metadata`).

    `metadata` is a JSON object: `network_g`, `source_sha256`, `training`, `metrics` and whatever else the maker
    recorded. Making one refuses tensors that no node uses; `check_graph` has checked the rest.
    """

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
    def receptive_radius(self) -> int | None:
        """Input pixels of context that decide an output pixel; None would mean the whole image (no such op yet)."""
        return self.graph.receptive_radius

    @property
    def sha256(self) -> str:
        """Content hash over graph, metadata and tensors: the name of this network, equal for equal content."""
        return _digest(_document(self), self.tensors)

    @property
    def binary_bits(self) -> int:
        """Number of 1-bit weights, without the padding to whole bytes."""
        bits = 0
        for node in self.graph.nodes:
            if node.op == "binary_conv2d":
                filters = self.tensors[node.tensors["weight"]].shape[0]
                bits += filters * int(node.attrs["kernel"]) ** 2 * self.graph.types[node.inputs[0]].channels
        return bits


def _compact(document: object) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _document(model: PackedModel) -> dict:
    """The JSON metadata without its checksum."""
    graph = model.graph
    return {
        "format_version": FORMAT_VERSION,
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


def _digest(document: dict, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the compact JSON, then name, dtype, shape and bytes of each tensor in order of names."""
    digest = hashlib.sha256(_compact(document).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(_compact([name, _NAMES[array.dtype], list(array.shape)]).encode())
        digest.update(_little_endian(array))
    return digest.hexdigest()


def _little_endian(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).astype(_DTYPES[_NAMES[array.dtype]], copy=False).tobytes()


def pack_model(model: PackedModel) -> bytes:
    """The bytes of the packed file of `model`: the same for the same model, always."""
    document = _document(model)
    document["sha256"] = _digest(document, model.tensors)
    arrays = {name: np.ascontiguousarray(array) for name, array in model.tensors.items()}
    # More than one metadata key would be written in random order by safetensors.
    return bytes(save(arrays, metadata={METADATA_KEY: _compact(document)}))


def write_packed(model: PackedModel, path: str | os.PathLike) -> None:
    """Write `model` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(pack_model(model))


def read_packed(path: str | os.PathLike) -> PackedModel:
    """Read and check a packed file. Raises a `PackedFormatError` that names the fault, or OSError."""
    return unpack_model(Path(path).read_bytes(), where=str(path))


def _header(data: bytes) -> dict:
    """The container's header, after the checks that tell a short file from a foreign one."""
    if len(data) < 8:
        raise TruncatedFileError(f"{len(data)} bytes are too few for a packed file")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES or (len(data) > 8 and data[8:9] != b"{"):
        raise NotPackedError("not a safetensors file (no header where one must start)")
    if 8 + length > len(data):
        raise TruncatedFileError(f"header of {length} bytes expected, only {len(data) - 8} bytes follow")
    try:
        header = json.loads(data[8 : 8 + length])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        promised = max([int(end) for end in ends], default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
        raise NotPackedError("the safetensors header is damaged") from None
    if 8 + length + promised > len(data):
        raise TruncatedFileError(f"the header announces {8 + length + promised} bytes, found {len(data)}")
    return header


def _no_constants(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _read_document(header: dict) -> dict:
    metadata = header.get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise NotPackedError(
            f"a safetensors file, but not a packed network (no metadata key {METADATA_KEY!r}); "
            "make one with `bam convert`"
        )
    try:
        document = json.loads(text, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise NotPackedError(f"the metadata is not valid JSON ({error})") from None
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        raise NotPackedError("the metadata has no format version")
    if version > FORMAT_VERSION:
        raise NewerVersionError(
            f"format version {version}, this program reads up to {FORMAT_VERSION}; update bam-plugin"
        )
    if set(document) != _FIELDS or not isinstance(document["info"], dict):
        raise NotPackedError(f"metadata fields {sorted(_FIELDS)} expected, found {sorted(document)}")
    return document


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read_nodes(graph: object) -> tuple[Node, ...]:
    if not isinstance(graph, dict) or set(graph) != {"num_in_ch", "output", "nodes"}:
        raise InvalidGraphError("the graph must have exactly the fields num_in_ch, nodes and output")
    if not isinstance(graph["nodes"], list) or not isinstance(graph["output"], str):
        raise InvalidGraphError("the graph's nodes must be a list and its output a name")
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
    """Read a packed network from the bytes of its file; `where` names their origin in messages."""
    try:
        return _unpack(data)
    except PackedFormatError as error:
        raise type(error)(f"{where}: {error}") from error


def _unpack(data: bytes) -> PackedModel:
    header = _header(data)
    for name, entry in header.items():
        if name != "__metadata__" and entry.get("dtype") not in _DTYPES:
            raise NotPackedError(f"tensor {name!r} has dtype {entry.get('dtype')}; only F32 and U8 are allowed")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, OverflowError) as error:
        raise NotPackedError(f"not a valid safetensors file ({error})") from None
    document = _read_document(header)
    nodes = _read_nodes(document["graph"])
    stated = document.pop("sha256")
    found = _digest(document, tensors)
    if stated != found:
        raise ChecksumError(f"content SHA-256 is {found}, the file states {stated!r}; fetch the file again")
    graph = check_graph(
        num_in_ch=document["graph"]["num_in_ch"], nodes=nodes, output=document["graph"]["output"], tensors=tensors
    )
    model = PackedModel(graph=graph, tensors=tensors, metadata=document["info"])
    if (document["scale"], document["receptive_radius"]) != (model.scale, model.receptive_radius):
        raise InvalidGraphError(
            f"states scale {document['scale']} and receptive radius {document['receptive_radius']}, "
            f"the graph has {model.scale} and {model.receptive_radius}"
        )
    return model
