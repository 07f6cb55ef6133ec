"""The report of a conversion: the bytes of each layer as float32, and those of its tensors in the packed file.

The bytes are counted in the finished graph, so the rows together have exactly the tensors of the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.packed.graph import Graph
from bam_plugin.packed.mixed_format import MixedModel


@dataclass(frozen=True)
class LayerRow:
    """One layer of the report."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    """Shape of its weight; empty if it has none."""
    bits_before: int
    """Its parameters and running statistics as float32."""
    bytes_after: int
    """Its tensors in the packed file: filters, scales, thresholds and all."""
    note: str
    """`packed`, or the reason why it is not."""


def layer_rows(
    network: nn.Module,
    graph: Graph,
    tensors: Mapping[str, np.ndarray],
    *,
    layers: Mapping[str, str],
    notes: Mapping[str, str],
) -> list[LayerRow]:
    """One row per layer with parameters, in order of execution.

    layers: name of a node -> path of the module it was made for, in `network`. notes: path -> what to say of it.
    """
    stored = dict.fromkeys(layers.values(), 0)
    for node in graph.nodes:
        stored[layers[node.name]] += sum(tensors[name].nbytes for name in node.tensors.values())
    notes = {layer: notes.get(layer, "full precision") for layer in stored}
    return _rows(network, stored, notes, root="(forward)")


def mixed_rows(network: nn.Module, model: MixedModel) -> list[LayerRow]:
    """The rows of a mixed network: one per module of `network`, which it was made from, with a state of its own."""
    layers = {layer.name: layer for layer in model.layers}
    stored, notes = {}, {}
    for name, module in network.named_modules():
        if any(name.startswith(f"{layer}.") for layer in layers):
            continue
        inner = isinstance(module, BinaryConv2d)
        prefix = f"{name}." if name else ""
        stored[name] = sum(
            array.nbytes
            for key, array in model.tensors.items()
            if key.startswith(prefix) and (inner or "." not in key[len(prefix) :])
        )
        float_activations = inner and layers[name].alphabet is None
        notes[name] = "packed, float activations" if float_activations else "packed" if inner else "full precision"
    return _rows(network, stored, notes, root="(network)")


def _rows(network: nn.Module, stored: Mapping[str, int], notes: Mapping[str, str], *, root: str) -> list[LayerRow]:
    rows = []
    for layer, nbytes in stored.items():
        module = network.get_submodule(layer)
        inner = isinstance(module, BinaryConv2d)  # its binarizers are no layers of their own
        held = itertools.chain(module.parameters(recurse=inner), module.buffers(recurse=inner))
        numbers = sum(tensor.numel() for tensor in held if tensor.is_floating_point())
        if not numbers and not nbytes:
            continue
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        rows.append(
            LayerRow(
                layer=layer or root,
                kind=type(module).__name__,
                shape=tuple(weight.shape) if isinstance(weight, Tensor) else (),
                bits_before=32 * numbers,
                bytes_after=nbytes,
                note=notes[layer],
            )
        )
    return rows
