"""Mixed networks between torch and file: make the content of a packed file, and build the network of a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bam_plugin.errors import MissingDependencyError
from bam_plugin.mixed.bounded import bounded
from bam_plugin.mixed.reach import Sizes, find_reach, find_sizes
from bam_plugin.mixed.sealed import refuse_files, sealed
from bam_plugin.mixed.torch_module import PackedConv2d, magnitude_norm, pack_network, packed_layers, swap_layers
from bam_plugin.nn.binary_conv import BinaryConv2d, binary_convs
from bam_plugin.packed.errors import (
    ConversionError,
    InvalidLayerError,
    MissingTensorError,
    TensorShapeError,
    UnbuildableNetworkError,
    UnexpectedTensorError,
)
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.toolbox.networks import build_network
from bam_plugin.toolbox.registration import register_networks


def make_mixed(
    network: nn.Module, *, num_in_ch: int, metadata: Mapping[str, Any], no_graph: str
) -> tuple[MixedModel, nn.Module]:
    """The content of a mixed file for `network`, and the packed network that computes with it.

    `metadata` must have `network_g`, the options that build the network. Reach and sizes are measured. Raises
    ConversionError, which names the part that cannot be packed.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    if not binary_convs(network):
        raise ConversionError(
            f"{type(network).__name__} has no binary convolution, so a packed file has nothing to pack"
        )
    sizes = find_sizes(network, num_in_ch)
    reach = find_reach(network, sizes, num_in_ch)
    packed = pack_network(network, torch.zeros(1, num_in_ch, sizes.fit(16), sizes.fit(16)))
    model = MixedModel(
        layers=tuple(module.layer for _, module in packed_layers(packed)),
        tensors=_arrays(packed),
        metadata=dict(metadata),
        scale=sizes.scale,
        num_in_ch=num_in_ch,
        num_out_ch=sizes.channels,
        receptive_radius=reach.radius,
        unbounded=reach.unbounded,
        size_multiple=sizes.multiple,
        least_size=sizes.least,
        no_graph=no_graph,
    )
    return model, packed


def sizes_of(model: MixedModel) -> Sizes:
    """The sizes that the network of a file takes."""
    return Sizes(model.size_multiple, model.least_size, model.scale, model.num_out_ch)


def _is_stored(name: str) -> bool:
    """Whether a file holds this entry of a state.

    It holds all but the counters of BatchNorm, which only training reads.
    """
    return not name.endswith("num_batches_tracked")


def _arrays(packed: nn.Module) -> dict[str, np.ndarray]:
    arrays = {}
    bits = {f"{name}.{role}" for name, module in packed_layers(packed) for role in module.layer.roles}
    for name, tensor in packed.state_dict().items():
        if not _is_stored(name):
            continue
        if tensor.is_floating_point():
            array = tensor.detach().numpy().astype(np.float32)
            if not np.isfinite(array).all():
                raise ConversionError(f"{name}: not finite; the checkpoint is from a run that diverged")
        elif name in bits or tensor.dtype == torch.int64:
            array = tensor.numpy()
        else:
            raise ConversionError(f"{name}: a mixed file holds floats and int64, not {tensor.dtype}")
        arrays[name] = np.array(array, order="C")
    return arrays


def load_network(model: MixedModel) -> nn.Module:
    """Build the network of a mixed file with the state of the file, for evaluation, on the CPU, without gradients.

    The type that `network_g` names must be registered: import the package that does it first, if it is not BasicSR or
    this one. Raises a PackedFormatError if file and network do not fit together, MissingDependencyError without
    BasicSR.
    """
    network = _build(model)
    convs = binary_convs(network)
    named = {layer.name for layer in model.layers}
    if set(convs) != named:
        raise InvalidLayerError(
            f"the file's binary layers are not those of the network: missing {sorted(set(convs) - named)[:6]}, unknown "
            f"{sorted(named - set(convs))[:6]}"
        )
    swap_layers(network, {layer.name: _empty_layer(model, layer.name, convs[layer.name]) for layer in model.layers})
    _fill(network, model.tensors)
    return network.eval().requires_grad_(False)


def _build(model: MixedModel) -> nn.Module:
    section = model.metadata["network_g"]
    assert isinstance(section, dict)  # MixedModel has checked it
    refuse_files(section)
    register_networks()  # before the seal: packages read files of their own when they are imported
    try:
        with sealed(), bounded(model.tensors), torch.random.fork_rng(devices=[]):
            return build_network(section)
    except MissingDependencyError:  # the file is right, but the installation lacks a part that builds it
        raise
    except Exception as error:  # a foreign network may raise anything at options that do not suit it
        raise UnbuildableNetworkError(
            f"the network {section['type']!r} cannot be built from the file's options "
            f"({type(error).__name__}: {error}); if another package registers it, import that first (--import MODULE)"
        ) from error


def _empty_layer(model: MixedModel, name: str, conv: BinaryConv2d) -> PackedConv2d:
    layer = next(layer for layer in model.layers if layer.name == name)
    activation = conv.binarize_activation
    own = (conv.in_channels, conv.kernel_size, conv.stride, conv.padding, activation.alphabet)
    if own != (layer.in_channels, layer.kernel, layer.stride, layer.padding, layer.alphabet):
        raise InvalidLayerError(f"layer {name!r} is {layer}, the network has there {conv} with {activation}")
    weight_bases, filters, _ = model.tensors[layer.tensor("weight")].shape
    if filters != conv.out_channels:
        raise TensorShapeError(f"layer {name!r} has {filters} filters, the network has there {conv.out_channels}")
    return PackedConv2d(
        layer=layer,
        filters=filters,
        weight_bases=weight_bases,
        activation_bases=model.tensors[layer.tensor("scale")].shape[0],
        norm=magnitude_norm(activation),
    )


@torch.no_grad()
def _fill(network: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    state: dict[str, Tensor] = network.state_dict()
    wanted = {name for name in state if _is_stored(name)}
    if missing := sorted(wanted - set(tensors)):
        raise MissingTensorError(f"the network needs tensors that the file does not hold: {missing[:8]}")
    if extra := sorted(set(tensors) - wanted):
        raise UnexpectedTensorError(f"the network has no place for the file's tensors {extra[:8]}")
    for name in sorted(wanted):
        array = tensors[name]
        if tuple(state[name].shape) != array.shape:
            raise TensorShapeError(f"tensor {name!r} must have the shape {tuple(state[name].shape)}, has {array.shape}")
        if state[name].is_floating_point() != (array.dtype == np.float32):
            raise TensorShapeError(f"tensor {name!r} must be {state[name].dtype}, is {array.dtype}")
        state[name].copy_(torch.from_numpy(np.array(array)))
