"""Facts of a packed network as plain values: layers with their bits and bytes, totals, measured results, origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import Node
from bam_plugin.packed.mixed_format import MixedModel, PackedLayer
from bam_plugin.packed.precision import FLOAT, Offer, read_offers

_KINDS = {"conv2d": "float conv", "binary_conv2d": "binary conv"}
_ORIGIN = ("producer", "source_sha256", "source_key", "training", "terms")


def describe(model: PackedModel | MixedModel, *, file_bytes: int) -> dict[str, object]:
    """The facts of a packed network, as JSON.

    `layers` lists the convolutions in order (of a mixed network the binary ones): name, kind, channels, kernel edge,
    weight bits, and the bytes of all their tensors. `binary` and `float` add up the weights of one bit and all other
    numbers. `kind` is `graph` or `mixed`; `operations` counts the nodes of a graph. `unbounded` says why there is no
    finite receptive radius, `no_graph` why a network is mixed. `precisions` has fp32 and the offered ones with their
    cost in dB by benchmark. `metrics` and `origin` are facts that the maker recorded; `info` has all of them.
    """
    tensor_bytes = sum(array.nbytes for array in model.tensors.values())
    floats = sum(array.size for array in model.tensors.values() if array.dtype == "float32")
    info = dict(model.metadata)
    own = _mixed_facts(model) if isinstance(model, MixedModel) else _graph_facts(model)
    offers = {} if isinstance(model, MixedModel) else read_offers(model.graph, info)
    return {
        "network": _network(info),
        "scale": model.scale,
        "channels": [model.num_in_ch, model.num_out_ch],
        "receptive_radius": model.receptive_radius,
        "float": {"numbers": floats, "bytes": floats * 4},
        "bytes": {"file": file_bytes, "tensors": tensor_bytes, "graph_and_facts": file_bytes - tensor_bytes},
        **own,
        "metrics": info.get("metrics"),
        "precisions": {FLOAT: None, **{name: _offer(offer) for name, offer in offers.items()}},
        "origin": {name: info[name] for name in _ORIGIN if name in info},
        "sha256": model.sha256,
        "info": info,
    }


def printable(text: str) -> str:
    """Text from a file for one line of a terminal.

    A character that is not printable, such as an escape, becomes its code.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _offer(offer: Offer) -> dict[str, object]:
    return {"cost_db": dict(offer.cost), "calibration": dict(offer.calibration), "convolutions": list(offer.ranges)}


def _graph_facts(model: PackedModel) -> dict[str, object]:
    binary_bytes = sum(model.tensors[node.tensors["weight"]].nbytes for node in _nodes(model, "binary_conv2d"))
    return {
        "kind": model.kind,
        "binary": {"weights": model.binary_bits, "bytes": binary_bytes},
        "operations": dict(sorted(Counter(node.op for node in model.graph.nodes).items())),
        "layers": [_layer(model, node) for node in model.graph.nodes if node.op in _KINDS],
        "unbounded": model.unbounded,
        "size_multiple": model.graph.size_multiple,
    }


def _mixed_facts(model: MixedModel) -> dict[str, object]:
    return {
        "kind": model.kind,
        "binary": {
            "weights": model.binary_bits,
            "bytes": sum(model.tensors[layer.tensor("weight")].nbytes for layer in model.layers),
        },
        "operations": {},
        "layers": [_mixed_layer(model, layer) for layer in model.layers],
        "no_graph": model.no_graph,
        "unbounded": model.unbounded,
        "size_multiple": model.size_multiple,
        "least_size": model.least_size,
    }


def _mixed_layer(model: MixedModel, layer: PackedLayer) -> dict[str, object]:
    bases, filters, _ = model.tensors[layer.tensor("weight")].shape
    return {
        "name": layer.name,
        "kind": "binary conv",
        "channels": [layer.in_channels, filters],
        "kernel": layer.kernel,
        "weights": bases * filters * layer.in_channels * layer.kernel**2,
        "bits_per_weight": 1,
        "bytes": sum(model.tensors[layer.tensor(role)].nbytes for role in layer.roles),
        "magnification": None,
    }


def _nodes(model: PackedModel, op: str) -> list[Node]:
    return [node for node in model.graph.nodes if node.op == op]


def _network(info: Mapping[str, object]) -> str | None:
    """The registered name of the network, if the maker recorded its options."""
    section = info.get("network_g")
    name = section.get("type") if isinstance(section, dict) else None
    return name if isinstance(name, str) else None


def _layer(model: PackedModel, node: Node) -> dict[str, object]:
    types, weight = model.graph.types, model.tensors[node.tensors["weight"]]
    channels, filters = types[node.inputs[0]].channels, weight.shape[0]
    binary = node.op == "binary_conv2d"
    kernel = int(node.attrs["kernel"]) if binary else weight.shape[2]
    return {
        "name": node.name,
        "kind": _KINDS[node.op],
        "channels": [channels, filters],
        "kernel": kernel,
        "weights": filters * channels // int(node.attrs.get("groups", 1)) * kernel**2,
        "bits_per_weight": 1 if binary else 32,
        "bytes": sum(model.tensors[name].nbytes for name in set(node.tensors.values())),
        "magnification": float(types[node.output].up) if types[node.output].up < 1 else types[node.output].up,
    }
