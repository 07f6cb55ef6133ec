"""Packed networks inside torch: every binary convolution holds its bits, and everything else stays a torch module.

`pack_network` makes such a network of any network with `BinaryConv2d`s. It computes the same as that network in
evaluation and runs under torch.export and torch.compile. A mixed packed file holds its `state_dict`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_plugin.mixed import torch_op
from bam_plugin.mixed.activation_steps import activation_steps, finite_array
from bam_plugin.nn.activations import ActivationBinarizer, window_mean
from bam_plugin.nn.binary_conv import BinaryConv2d, binary_convs, note_previous
from bam_plugin.packed.bits import pack_filters
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.graph import packed_filter_bytes
from bam_plugin.packed.mixed_format import PackedLayer


class PackedConv2d(nn.Module):
    """A binary convolution (N, C, H, W) -> (N, O, H', W') in evaluation, from packed bits; without gradient.

    It computes the same as `BinaryConv2d` in evaluation, in float32. Other types are converted to float32 and back.

    Args:
        layer: name (for messages) and geometry.
        filters: O.
        weight_bases, activation_bases: M and N.
        norm: the module before the magnitude of an activation binarizer, see magnitude_norm; else None.

    Buffers: `weight` (uint8, the bits), `scale`, `threshold` and `flip` as in `mixed_format.PackedLayer`. `weight` has
    the name of the latent weight in `BinaryConv2d`. Later members of an accumulation group get it as their argument and
    ignore it, because their accumulated signs are packed.
    """

    def __init__(
        self,
        *,
        layer: PackedLayer,
        filters: int,
        weight_bases: int = 1,
        activation_bases: int = 1,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm
        shape = (weight_bases, filters, packed_filter_bytes(layer.in_channels, layer.kernel))
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(activation_bases, weight_bases, filters))
        if layer.alphabet is not None:
            self.threshold: Tensor
            self.flip: Tensor
            self.register_buffer("threshold", torch.zeros(activation_bases, layer.in_channels))
            self.register_buffer("flip", torch.zeros(activation_bases, layer.in_channels, dtype=torch.uint8))

    def forward(self, x: Tensor, previous: Sequence[Tensor] = ()) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'); `previous` is ignored."""
        values, layer = x.float(), self.layer
        if layer.alphabet is None:
            return self._float_activations(values).to(x.dtype)
        out = torch_op.packed_conv2d(
            values, self.weight, self.scale, self.threshold, self.flip, layer.kernel, layer.alphabet
        )
        cut = layer.kernel // 2 - layer.padding
        if cut or layer.stride > 1:
            # The kernels keep the size. An output of another geometry is a part of their output.
            out = out[:, :, cut : out.shape[2] - cut : layer.stride, cut : out.shape[3] - cut : layer.stride]
        if self.norm is not None:
            magnitude = self.norm(values).abs().mean(dim=1, keepdim=True)
            out = out * window_mean(magnitude, kernel_size=layer.kernel, stride=layer.stride, padding=layer.padding)
        return out.to(x.dtype)

    def _float_activations(self, x: Tensor) -> Tensor:
        total = None
        for signs, scale in zip(
            torch_op.unpack_signs(self.weight, self.layer.in_channels, self.layer.kernel), self.scale[0], strict=True
        ):
            dot = F.conv2d(x, signs, stride=self.layer.stride, padding=self.layer.padding)
            term = dot * scale.view(1, -1, 1, 1)
            total = term if total is None else total + term
        assert total is not None
        return total

    def signs(self, x: Tensor) -> list[Tensor]:
        """The binarized activations of x, see `torch_op.sign_maps`; none if activations stay float."""
        return [] if self.layer.alphabet is None else torch_op.sign_maps(x.float(), self.threshold, self.flip)

    def extra_repr(self) -> str:
        """The options that `print` shows."""
        layer = self.layer
        return f"{layer.in_channels}, {self.scale.shape[2]}, kernel_size={layer.kernel}, stride={layer.stride}"


def pack_network(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `network` in evaluation mode whose binary convolutions hold packed words only.

    `example` (N, C, H, W) is an input of the network. A forward shows which filters accumulate earlier ones. Raises
    ConversionError, which names the convolution that cannot be packed.
    """
    twin = copy.deepcopy(network).float().eval()
    previous = _previous_filters(twin, example)
    convs = binary_convs(twin)
    swap_layers(twin, {name: pack_layer(name, conv, previous.get(name, ())) for name, conv in convs.items()})
    return twin.requires_grad_(False)


def packed_layers(network: nn.Module) -> list[tuple[str, PackedConv2d]]:
    """The packed convolutions of a network by their paths."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, PackedConv2d)]


def swap_layers(network: nn.Module, layers: dict[str, PackedConv2d]) -> None:
    """Put each of `layers` at its path, and at all other places that use the same convolution, in place."""
    if "" in layers:
        raise ConversionError("the network is one binary convolution itself: wrap it in nn.Sequential")
    new = {id(network.get_submodule(name)): layer for name, layer in layers.items()}
    for parent in list(network.modules()):
        for child, module in list(parent._modules.items()):
            if id(module) in new:
                setattr(parent, child, new[id(module)])


def magnitude_norm(activation: ActivationBinarizer) -> nn.Module | None:
    """A copy of the module between a map and the value whose magnitude `activation` takes; None if it takes none."""
    if not activation.has_magnitude:
        return None
    return nn.Identity() if activation.norm is None else copy.deepcopy(activation.norm)


def pack_layer(name: str, conv: BinaryConv2d, previous: Sequence[Tensor]) -> PackedConv2d:
    """The packed form of one binary convolution; `previous` are the latent weights of the earlier ones of its group."""
    activation = conv.binarize_activation
    layer = PackedLayer(
        name=name,
        in_channels=conv.in_channels,
        kernel=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        alphabet=activation.alphabet,
    )
    if layer.kernel % 2 == 0 or layer.padding > layer.kernel // 2:
        raise ConversionError(f"{name}: only odd kernels with at most half a kernel of padding can be packed")
    pairs = conv.decompose(previous)
    steps = [] if layer.alphabet is None else activation_steps(activation, name)
    factors = [factor for _, _, factor in steps] or [None]
    packed = PackedConv2d(
        layer=layer,
        filters=conv.out_channels,
        weight_bases=len(pairs),
        activation_bases=len(factors),
        norm=magnitude_norm(activation),
    )
    filters = [pack_filters(signs.cpu().numpy().transpose(0, 2, 3, 1) < 0) for signs, _ in pairs]
    packed.weight.copy_(torch.from_numpy(np.stack(filters)))
    for base, factor in enumerate(factors):
        for index, (_, scale) in enumerate(pairs):
            scaled = finite_array(scale if factor is None else scale * factor, name)
            packed.scale[base, index] = torch.from_numpy(scaled)
    for base, (threshold, flip, _) in enumerate(steps):
        packed.threshold[base] = torch.from_numpy(threshold)
        packed.flip[base] = torch.from_numpy(flip)
    return packed.to(conv.weight.device).eval()


def _previous_filters(network: nn.Module, example: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Path of a binary convolution -> the earlier latent weights that its calls in a forward get."""
    found: dict[str, tuple[Tensor, ...]] = {}
    handles = []
    for name, conv in binary_convs(network).items():

        def note(filters: tuple[Tensor, ...], name: str = name) -> None:
            if [id(each) for each in found.setdefault(name, filters)] != [id(each) for each in filters]:
                raise ConversionError(f"{name}: accumulates other filters from call to call; such a layer cannot pack")

        handles.append(note_previous(conv, note))
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return found
