"""Methods with an identity path around each convolution: one path, no blind sign, and the network of BBCU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import SMALL_ARCHS, enliven
from torch import Tensor, nn

from bam_plugin.archs.bbcu_arch import BBCU
from bam_plugin.archs.bsrn_arch import ARCH_REGISTRY
from bam_plugin.archs.srresnet_arch import SRResNet
from bam_plugin.conversion.converter import convert_network
from bam_plugin.nn import METHODS, BinaryLayer, make_method
from bam_plugin.nn.binary_conv import binary_convs
from bam_plugin.nn.sign import sign

OWN_PATHS = [name for name, method in METHODS.items() if method.skip]


def literal(layer: BinaryLayer, x: Tensor, method: str) -> Tensor:
    """One layer as its paper and its authors' code have it; in evaluation."""
    conv = layer.conv
    weight = sign(conv.weight)
    if method != "e2fif":
        weight = weight * conv.weight.abs().mean((1, 2, 3), keepdim=True)
    threshold = conv.binarize_activation.threshold if method in ("react", "bbcu") else 0
    out = F.conv2d(sign(x - threshold), weight, padding=1)
    if method == "bbcu":
        return layer.rprelu(out) + x
    out = layer.norm(out) + x
    return layer.rprelu(out) if method == "react" else out


def test_the_four_methods_are_meant():
    assert OWN_PATHS == ["bireal", "react", "e2fif", "bbcu"]


@pytest.mark.parametrize("method", OWN_PATHS)
@torch.no_grad()
def test_a_block_of_srresnet_has_no_path_around_the_paths_of_its_layers(method):
    torch.manual_seed(1)
    block = enliven(SRResNet(num_feat=8, num_block=1, binarizer=method)).eval().body[0]
    first, second = block.body.layers
    for parameter in (*first.parameters(), *second.parameters()):
        if parameter.ndim < 4:
            nn.init.normal_(parameter, 1, 0.1)
    x = torch.randn(2, 8, 6, 5)
    between = literal(first, x, method)
    expected = literal(second, F.leaky_relu(between, 0.1) if method == "e2fif" else between, method)
    torch.testing.assert_close(block(x), expected)
    assert (first.norm is None) == (method == "bbcu")


@pytest.mark.parametrize("method", OWN_PATHS)
def test_the_range_does_not_double_from_block_to_block(method):
    torch.manual_seed(1)
    network = SRResNet(num_feat=16, num_block=16, binarizer=method)
    features = network.head(torch.rand(2, 3, 12, 12))
    grown = network.body(features).std() / features.std()
    assert grown < 60  # two paths per block would make it 2^16


@pytest.mark.parametrize("name", ["BSRN", "VDSR", "SRResNet", "PlainBSR", "BBCU"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_binary_convolution_is_blind_at_the_start(name, method):
    """Behind a ReLU a sign that is taken of the map itself would be +1 everywhere."""
    torch.manual_seed(2)
    network = ARCH_REGISTRY.get(name)(**SMALL_ARCHS[name], binarizer=method)
    blind = []
    for path, conv in binary_convs(network).items():

        def look(conv: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor, path: str = path) -> None:
            activation = conv.binarize_activation(inputs[0])
            if activation.amin() == activation.amax():
                blind.append(path)

        conv.register_forward_hook(look)
    with torch.no_grad():
        network(torch.rand(2, 3, 12, 12))
    assert not blind


def test_weights_of_e2fif_have_no_scale_and_an_identity_gradient():
    layer = BinaryLayer(in_channels=2, out_channels=2, method=METHODS["e2fif"])
    latent = (3 * torch.randn(2, 2, 3, 3)).requires_grad_()
    weight = layer.conv.binarize_weight(latent)
    assert torch.equal(weight, sign(latent))
    gradient = torch.randn_like(latent)
    weight.backward(gradient)
    assert torch.equal(latent.grad, gradient)
    clipped = make_method("e2fif", weight="bnn")
    assert clipped.weight_options == {"clip": False}  # the side was not replaced, so its options stay


@pytest.mark.parametrize("parts", [(), ("upsampler", "end")])
@torch.no_grad()
def test_bbcu_is_its_formula(parts):
    torch.manual_seed(3)
    network = enliven(BBCU(num_feat=8, num_block=1, upscale=2, binary_parts=parts)).eval()
    x = torch.rand(1, 3, 6, 5)
    amplified = 130 * x
    h = F.leaky_relu(network.head[0](amplified), 0.1)
    for layer in network.body[0].layers:
        h = literal(layer, h, "bbcu")
    if parts:
        (stage,) = network.upsampler
        layer = stage.layer
        signs = layer.conv(h)
        h = F.pixel_shuffle(layer.rprelu(signs), 2) + h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = literal(network.end[0], h, "bbcu")
    else:
        h = F.leaky_relu(F.pixel_shuffle(network.upsampler[0](h), 2), 0.1)
        h = network.end[0](h)
    base = F.interpolate(amplified, scale_factor=2, mode="bilinear", align_corners=False)
    expected = (network.tail(F.leaky_relu(h, 0.1)) + base) / 130
    torch.testing.assert_close(network(x), expected)


def test_bbcu_is_packed_and_refuses_what_it_is_not():
    torch.manual_seed(3)
    conversion = convert_network(BBCU(num_feat=8, num_block=1, upscale=4, binary_parts=["upsampler", "end"]).eval())
    assert conversion.comparison is not None and conversion.comparison.agreement > 0.999
    assert len([row for row in conversion.rows if row.note == "packed"]) == 2 + 2 + 1
    for options, message in (({"upscale": 5}, "upscale"), ({"num_out_ch": 1}, "must be equal")):
        with pytest.raises(ValueError, match=message):
            BBCU(**options)
