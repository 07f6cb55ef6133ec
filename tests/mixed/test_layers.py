"""Packed convolutions inside torch: equal to BinaryConv2d in every bit, for every binarizer, geometry and layout."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.mixed_hosts import network
from helpers.networks import enliven
from torch import nn

from bam_plugin.engine.engine import available_isas
from bam_plugin.mixed.torch_module import PackedConv2d, pack_layer, pack_network, packed_layers
from bam_plugin.mixed.torch_op import instruction_set, packed_conv2d, simulated_conv2d
from bam_plugin.nn import METHODS, BinaryConv2d, binarize
from bam_plugin.nn.binary_conv import binary_convs
from bam_plugin.nn.mixing.grouping import GroupedLayer
from bam_plugin.packed.errors import ConversionError, EngineError

FORMATS = (torch.contiguous_format, torch.channels_last)


def conv(method: str = "bam", *, channels: int = 16, filters: int = 16, **options) -> BinaryConv2d:
    """A binary convolution as a training could leave it."""
    torch.manual_seed(3)
    options = {**METHODS[method].conv_options(0), **options}
    layer = BinaryConv2d(in_channels=channels, out_channels=filters, output_scale="channel", **options)
    layer.output_scale.data.uniform_(-1, 1)
    for name, parameter in layer.binarize_activation.named_parameters():
        if "threshold" in name or "factor" in name or "shift" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return enliven(layer).eval()


CASES = {
    **{method: conv(method) for method in sorted(METHODS)},
    "3x2 bases": conv("abc", weight_options={"bases": 2}, activation_options={"bases": 3}),
    "float activations": conv("bam", activation_binarizer="float"),
    "odd channels": conv("bam", channels=5, filters=7),
    "wide": conv("react", channels=70, filters=33),
    "1x1": conv("bam", kernel_size=1),
    "5x5": conv("dorefa", kernel_size=5),
    "stride": conv("bam", stride=2),
    "stride without padding": conv("xnor", stride=2, padding=0),
    "less padding": conv("bam", kernel_size=5, padding=1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_layer_equals_the_simulation(name, memory_format):
    simulated = CASES[name]
    packed = pack_layer(name, simulated, ())
    x = torch.randn(2, simulated.in_channels, 13, 18).contiguous(memory_format=memory_format)
    with torch.no_grad():
        expected = simulated(x)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(packed(x), expected), threads
        torch.set_num_threads(1)
        binarizer = simulated.binarize_activation
        if binarizer.alphabet is not None:
            for (signs, _), high in zip(binarizer.maps(binarizer.value(x)), packed.signs(x), strict=True):
                assert torch.equal(signs > 0, high)  # no flipped sign
    latent = simulated.weight.numel() * 4
    assert packed.weight.dtype == torch.uint8 and packed.weight.nbytes <= latent / 32 * len(packed.weight) + 64


@pytest.mark.parametrize("isa", available_isas())
def test_layer_is_the_same_on_every_instruction_set(isa):
    for name in ("abc", "dorefa", "odd channels"):
        packed = pack_layer(name, CASES[name], ())
        x = torch.randn(1, CASES[name].in_channels, 6, 9)
        with torch.no_grad(), instruction_set(isa):
            assert torch.equal(packed(x), CASES[name](x)), name


def test_layer_follows_changes_of_its_tensors():
    packed, other = (pack_layer("a", conv(method), ()) for method in ("bam", "react"))
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        before, wanted = packed(x), other(x)
        assert not torch.equal(before, wanted)
        packed.load_state_dict(other.state_dict())
        assert torch.equal(packed(x), wanted)
        packed.scale *= 2
        assert torch.equal(packed(x), 2 * wanted)
        packed.scale = torch.zeros_like(packed.scale)
        assert not packed(x).any()


@pytest.mark.parametrize(("memory_format", "case"), itertools.product(FORMATS, ("3x2 bases", "dorefa")))
def test_operator_passes_torchs_own_check(memory_format, case):
    layer = pack_layer(case, CASES[case], ())
    x = torch.randn(2, 16, 5, 7).contiguous(memory_format=memory_format)
    arguments = (x, layer.weight, layer.scale, layer.threshold, layer.flip, 3, layer.layer.alphabet)
    torch.library.opcheck(torch.ops.bam_plugin.packed_conv2d.default, arguments)


def test_operator_without_kernels_gives_the_same():
    """What devices other than the CPU run: bits unpacked, conv2d."""
    for case in ("3x2 bases", "dorefa", "odd channels"):
        layer = pack_layer(case, CASES[case], ())
        x = torch.randn(2, CASES[case].in_channels, 5, 7)
        arguments = (x, layer.weight, layer.scale, layer.threshold, layer.flip, 3, layer.layer.alphabet)
        assert torch.equal(simulated_conv2d(*arguments), packed_conv2d(*arguments)), case


@pytest.mark.parametrize("channels", [3, 15, 17, 32])
def test_operator_refuses_maps_of_other_layers(channels):
    """The kernels take the map's memory as it is, and would read beyond the end of a narrower one."""
    layer = pack_layer("a", CASES["bam"], ())
    x = torch.randn(1, channels, 6, 6).contiguous(memory_format=torch.channels_last)
    arguments = (layer.weight, layer.scale, layer.threshold, layer.flip, 3, layer.layer.alphabet)
    with pytest.raises(EngineError, match=rf"\(H, W, 16\), found \(6, 6, {channels}\)"):
        packed_conv2d(x, *arguments)
    with pytest.raises(EngineError, match=r"float32 array .* found float64"):
        packed_conv2d(torch.randn(1, 16, 6, 6).double(), *arguments)


def test_half_precision_is_converted_and_back():
    packed = pack_layer("a", CASES["bam"], ())
    x = torch.randn(1, 16, 6, 6).bfloat16()
    with torch.no_grad():
        assert torch.equal(packed(x), packed(x.float()).bfloat16())


def test_accumulated_filters_are_packed():
    """Members of a group get the signs of their accumulated sum, and hand on nothing but their words."""
    for group in ("parent", "all"):
        simulated = network("SRVGGNetCompact_basicsr", group=group)
        packed = pack_network(simulated, torch.rand(1, 3, 16, 16))
        assert sum(isinstance(m, GroupedLayer) and m.group is not None for m in packed.modules()) == 4
        assert list(binary_convs(simulated)) == [n for n, _ in packed_layers(packed)]
        x = torch.rand(2, 3, 9, 14)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), simulated(x), rtol=1e-5, atol=1e-6)
        alone = pack_layer("a", list(binary_convs(simulated).values())[-1], ())
        assert not torch.equal(alone.weight, packed_layers(packed)[-1][1].weight)


def test_a_shared_convolution_stays_shared():
    host = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    binarize(host, {"keep_first_last": False, "group": "none"})
    host[2] = host[1]
    packed = pack_network(host, torch.rand(1, 4, 8, 8))
    assert packed[2] is packed[1] and isinstance(packed[1].conv, PackedConv2d)
    with torch.no_grad():
        torch.testing.assert_close(packed(torch.ones(1, 4, 8, 8)), host.eval()(torch.ones(1, 4, 8, 8)))


@pytest.mark.parametrize(
    ("options", "message"), [({"kernel_size": 2}, "odd kernels"), ({"padding": 2}, "half a kernel of padding")]
)
def test_what_cannot_be_packed_is_named(options, message):
    with pytest.raises(ConversionError, match=rf"^body\.0: .*{message}"):
        pack_layer("body.0", conv("bam", **options), ())


def test_filters_that_change_from_call_to_call_are_refused():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv("bam")

        def forward(self, x):
            return self.conv(self.conv(x), (torch.ones_like(self.conv.weight),))

    with pytest.raises(ConversionError, match="conv: accumulates other filters"):
        pack_network(Host(), torch.rand(1, 16, 6, 6))
    with pytest.raises(ConversionError, match=r"wrap it in nn\.Sequential"):
        pack_network(conv("bam"), torch.rand(1, 16, 6, 6))
