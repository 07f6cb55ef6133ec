"""A mixed network in a packed file: binary layers as bits, other state as floats, and the options to build the rest.

Networks that no packed graph expresses (attention, pooling over the picture, linear layers, ...) run in torch.
The file holds the state of the torch module that `torch_module.pack_network` makes: for each binary convolution NAME
the tensors `NAME.weight`, `NAME.scale`, `NAME.threshold` and `NAME.flip`, and every other entry of its `state_dict` by
its own name. To read and check such a file needs no torch. To run it does (`mixed_engine.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bam_plugin.packed.container import check_fields, digest
from bam_plugin.packed.errors import InvalidLayerError, MissingTensorError, NotPackedError, TensorShapeError
from bam_plugin.packed.graph import ALPHABETS, packed_filter_bytes
from bam_plugin.packed.ops import MAX_CHANNELS, MAX_KERNEL, MAX_UP

VERSION = 2
KIND = "mixed"
MAX_MULTIPLE = 1024
MAX_BASES = 64
_FIELDS = {
    *("format_version", "kind", "info", "layers", "num_in_ch", "num_out_ch", "scale"),
    *("receptive_radius", "unbounded", "size_multiple", "least_size", "no_graph"),
}
_LAYER_FIELDS = ("name", "in_channels", "kernel", "stride", "padding", "alphabet")


@dataclass(frozen=True)
class PackedLayer:
    """One packed binary convolution of a mixed network: its path in the network and its geometry.

    `alphabet` gives the values of the bits of its operand, see `graph.ALPHABETS`; None if only the weights are binary.
    Its tensors: weight uint8 (M, O, bytes of a filter), scale float32 (N, M, O), and unless the alphabet is None
    threshold float32 (N, C) and flip uint8 (N, C), for M bases of the weight and N of the activation.
    """

    name: str
    in_channels: int
    kernel: int
    stride: int
    padding: int
    alphabet: str | None

    def tensor(self, role: str) -> str:
        """The name of the layer's tensor of that role."""
        return f"{self.name}.{role}"

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of its tensors."""
        return ("weight", "scale") if self.alphabet is None else ("weight", "scale", "threshold", "flip")


@dataclass(frozen=True)
class MixedModel:
    """The content of the file of a mixed network. `metadata["network_g"]` has the options that build the network.

    The constructor checks the layers and their tensors. Whether the others fit shows when the network is built.
    """

    kind: ClassVar[str] = KIND
    """The kind of engine that runs it, see `bam_plugin.engine.opening`."""
    layers: tuple[PackedLayer, ...]
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, object]
    scale: int
    """Magnification: output height over input height."""
    num_in_ch: int
    """Channels of the input image."""
    num_out_ch: int
    """Channels of the output."""
    receptive_radius: int | None
    """Input pixels around a pixel that decide its output. None: not finite, or not the same for all pixels."""
    unbounded: str = ""
    """Why there is no finite radius: the module and what it does. Empty if there is one."""
    size_multiple: int = 1
    """Heights and widths that the network takes are multiples of this (others are padded and cut)."""
    least_size: int = 1
    """The smallest height and width that it takes, a multiple of `size_multiple`."""
    no_graph: str = ""
    """Why the network is no packed graph: the first node that has no packed counterpart."""
    own: frozenset[str] = field(init=False, repr=False)
    """Names of the tensors of the binary layers; the others are float state."""

    def __post_init__(self):
        _check_numbers(self)
        _check_network(self.metadata)
        own: set[str] = set()
        for layer in self.layers:
            _check_layer(layer, self.tensors)
            own |= {layer.tensor(role) for role in layer.roles}
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise InvalidLayerError("two binary layers have one name")
        for name, array in self.tensors.items():
            if name not in own and array.dtype not in (np.float32, np.int64):
                raise TensorShapeError(f"tensor {name!r} of no binary layer must be float32 or int64, is {array.dtype}")
            if array.dtype == np.float32 and name not in own and not np.isfinite(array).all():
                raise TensorShapeError(f"tensor {name!r} has values that are not finite")
        object.__setattr__(self, "own", frozenset(own))

    @property
    def sha256(self) -> str:
        """Content hash over document and tensors: the name of this network, equal for equal content."""
        return digest(mixed_document(self), self.tensors)

    @property
    def binary_bits(self) -> int:
        """Number of 1-bit weights, without the padding to whole bytes."""
        bits = 0
        for layer in self.layers:
            bases, filters, _ = self.tensors[layer.tensor("weight")].shape
            bits += bases * filters * layer.kernel**2 * layer.in_channels
        return bits


def mixed_document(model: MixedModel) -> dict:
    """The JSON metadata of the file without its checksum."""
    return {
        "format_version": VERSION,
        "kind": KIND,
        "scale": model.scale,
        "num_in_ch": model.num_in_ch,
        "num_out_ch": model.num_out_ch,
        "receptive_radius": model.receptive_radius,
        "unbounded": model.unbounded,
        "size_multiple": model.size_multiple,
        "least_size": model.least_size,
        "no_graph": model.no_graph,
        "layers": [[getattr(layer, name) for name in _LAYER_FIELDS] for layer in model.layers],
        "info": dict(model.metadata),
    }


def unpack_mixed(document: dict, tensors: Mapping[str, np.ndarray]) -> MixedModel:
    """The mixed network of a file's document and tensors; a PackedFormatError names the fault."""
    if document.get("kind") != KIND:
        raise NotPackedError(f"a packed file of the kind {KIND!r} expected, found {document.get('kind')!r}")
    check_fields(document, _FIELDS)
    rows = document["layers"]
    if not isinstance(rows, list):
        raise InvalidLayerError("the layers must be a list")
    layers = []
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(_LAYER_FIELDS):
            raise InvalidLayerError(f"layer {index} must be a list: {', '.join(_LAYER_FIELDS)}")
        layers.append(PackedLayer(*row))
    return MixedModel(
        layers=tuple(layers),
        tensors=tensors,
        metadata=document["info"],
        **{name: document[name] for name in _FIELDS - {"format_version", "kind", "info", "layers"}},
    )


def _integer(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _check_numbers(model: MixedModel) -> None:
    limits = {
        "scale": (1, MAX_UP),
        "num_in_ch": (1, MAX_CHANNELS),
        "num_out_ch": (1, MAX_CHANNELS),
        "size_multiple": (1, MAX_MULTIPLE),
        "least_size": (1, MAX_MULTIPLE),
    }
    for name, (low, high) in limits.items():
        if not _integer(getattr(model, name), low, high):
            raise NotPackedError(f"{name} must be an integer from {low} to {high}, found {getattr(model, name)!r}")
    if model.least_size % model.size_multiple:
        raise NotPackedError(f"least_size {model.least_size} is no multiple of size_multiple {model.size_multiple}")
    if not isinstance(model.unbounded, str) or not isinstance(model.no_graph, str):
        raise NotPackedError("unbounded and no_graph must be texts")
    radius = model.receptive_radius
    if not (radius is None and model.unbounded) and not (_integer(radius, 0, 1 << 20) and not model.unbounded):
        raise NotPackedError(
            f"a receptive radius or a text why there is none expected, found {radius!r} and {model.unbounded!r}"
        )


def _check_network(metadata: Mapping[str, object]) -> None:
    section = metadata.get("network_g")
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        raise NotPackedError("a mixed network needs info.network_g, the options of its network with a type")


def _check_layer(layer: PackedLayer, tensors: Mapping[str, np.ndarray]) -> None:
    name, kernel = layer.name, layer.kernel
    if not isinstance(name, str) or not name:
        raise InvalidLayerError(f"a binary layer needs a name, found {name!r}")
    good = _integer(layer.in_channels, 1, MAX_CHANNELS) and _integer(layer.stride, 1, MAX_KERNEL)
    if not good or not _integer(kernel, 1, MAX_KERNEL) or kernel % 2 == 0:
        raise InvalidLayerError(f"layer {name!r} has no valid channels, stride or odd kernel: {layer}")
    if not _integer(layer.padding, 0, kernel // 2):
        raise InvalidLayerError(f"layer {name!r} has a padding that is not in 0..{kernel // 2}: {layer.padding!r}")
    if layer.alphabet is not None and layer.alphabet not in ALPHABETS:
        raise InvalidLayerError(f"layer {name!r} has the alphabet {layer.alphabet!r}; known: {ALPHABETS}")

    def tensor(role: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
        full = layer.tensor(role)
        if full not in tensors:
            raise MissingTensorError(f"layer {name!r} needs the tensor {full!r}, which is not in the file")
        array = tensors[full]
        fits = len(array.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=False)
        )
        if array.dtype != dtype or not fits or not array.size:
            wanted = "x".join("any" if size is None else str(size) for size in shape)
            raise TensorShapeError(
                f"tensor {full!r} must be {np.dtype(dtype)} of shape {wanted}, is {array.dtype} of {array.shape}"
            )
        return array

    weight = tensor("weight", np.uint8, (None, None, packed_filter_bytes(layer.in_channels, kernel)))
    scale = tensor("scale", np.float32, (None, *weight.shape[:2]))
    if not np.isfinite(scale).all():
        raise TensorShapeError(f"tensor {layer.tensor('scale')!r} has values that are not finite")
    bits = layer.in_channels * kernel**2
    if bits % 8 and np.any(weight[..., -1] >> (bits % 8)):
        raise InvalidLayerError(f"layer {name!r} has padding bits that are not 0 in its packed weights")
    if max(weight.shape[0], scale.shape[0]) > MAX_BASES or weight.shape[1] > MAX_CHANNELS:
        raise InvalidLayerError(f"layer {name!r} has more than {MAX_BASES} bases or {MAX_CHANNELS} filters")
    if layer.alphabet is None:
        if scale.shape[0] != 1:
            raise InvalidLayerError(f"layer {name!r} has float activations in {scale.shape[0]} bases")
        return
    threshold = tensor("threshold", np.float32, (scale.shape[0], layer.in_channels))
    flip = tensor("flip", np.uint8, threshold.shape)
    if np.isnan(threshold).any() or (flip > 1).any():
        raise InvalidLayerError(f"layer {name!r} needs thresholds that are numbers and flips of 0 or 1")
