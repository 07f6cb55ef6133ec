"""Hosts of BasicSR as mixed files: reach and sizes measured, results equal to PyTorch's, tiles joined or blended."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.mixed_hosts import MIXED, converted, mixed_model, network, picture, run_float
from helpers.networks import HOSTS, SMALL_ARCHS
from torch import nn

from bam_plugin.archs.bsrn_arch import ARCH_REGISTRY
from bam_plugin.mixed.mixed_engine import MixedEngine
from bam_plugin.mixed.mixed_network import make_mixed
from bam_plugin.mixed.reach import Reach, Sizes, find_reach, find_sizes, run_fitted
from bam_plugin.mixed.torch_module import pack_network
from bam_plugin.packed import PackedModel
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.upscale import Upscaler

REASONS = {
    "RCAN": r"host\.body\.0\.residual_group\.0\.rcab\.3\.attention\.0 \(AdaptiveAvgPool2d\) sees the whole picture",
    "RIDNet": r"host\.body\.0\.ca\.attention\.0 \(AdaptiveAvgPool2d\) sees the whole picture",
    "SwinIR": r"host\.layers\.0\.residual_group\.blocks\.0 \(SwinTransformerBlock\) does not treat all pixels alike",
}


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_walk_over_hosts(host):
    """Each becomes a graph where it can, else a mixed file that says why; and agrees with PyTorch, sign by sign."""
    conversion = converted(host)
    model, comparison = conversion.model, conversion.comparison
    assert isinstance(model, MixedModel if host in MIXED else PackedModel)
    assert comparison.agreement >= 0.9999 and comparison.signs
    assert len(comparison.flips) == sum(row.note.startswith("packed") for row in conversion.rows)
    assert comparison.same_signs.max_difference <= 1 and comparison.same_signs.max_float_difference < 1e-4
    assert sum(row.bytes_after for row in conversion.rows) == sum(array.nbytes for array in model.tensors.values())
    if host not in MIXED:
        return
    assert ("no packed counterpart" in model.no_graph) != ("cannot be traced" in model.no_graph)
    loaded = mixed_model(host)
    assert loaded.sha256 == model.sha256 and loaded.metadata == model.metadata
    engine = MixedEngine(loaded, threads=1)
    image = picture(21, 26)
    expected = run_float(network(host), image if host != "SwinIR" else np.pad(image, ((0, 3), (0, 2), (0, 0)), "edge"))
    expected = expected[: 21 * model.scale, : 26 * model.scale]
    np.testing.assert_allclose(engine.run(image), expected, rtol=1e-4, atol=1e-4)
    assert MixedEngine(loaded, threads=2).run(image).shape == expected.shape
    assert engine.run(picture(1, 1)).shape == (model.scale, model.scale, 3)


@pytest.mark.parametrize("host", MIXED)
def test_export_takes_the_packed_network(host):
    packed = pack_network(network(host), torch.rand(1, 3, 16, 16))
    x = torch.rand(1, 3, 20, 24)
    size = {2: torch.export.Dim("height", min=8, max=64), 3: torch.export.Dim("width", min=8, max=64)}
    free = host not in ("ECBSR", "SwinIR")  # these two's own code fixes the size
    program = torch.export.export(packed, (x,), dynamic_shapes=(size,) if free else None)
    calls = [node for node in program.graph.nodes if "packed_conv2d" in str(node.target)]
    assert len(calls) == len(mixed_model(host).layers)
    assert all(program.state_dict[f"{layer.name}.weight"].dtype == torch.uint8 for layer in mixed_model(host).layers)
    if free:
        x = torch.rand(1, 3, 31, 17)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), packed(x), rtol=1e-5, atol=1e-6)


def test_compile_takes_the_packed_network():
    torch.compiler.reset()
    packed = pack_network(network("RCAN", group="none"), torch.rand(1, 3, 16, 16))
    whole = torch.compile(packed, backend="aot_eager", fullgraph=True)
    x = torch.rand(1, 3, 12, 14)
    with torch.no_grad():
        torch.testing.assert_close(whole(x), packed(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_reach_is_measured(host):
    """Equal to the graph's, worked out node by node, where there is a graph; no finite one where attention works."""
    net, model = network(host), converted(host).model
    if host not in MIXED:
        assert find_reach(net, find_sizes(net, 3), 3).radius == model.receptive_radius
    elif host in REASONS:
        assert model.receptive_radius is None
        assert re.search(REASONS[host], model.unbounded), model.unbounded
    else:
        assert (host, model.receptive_radius) == ("ECBSR", 4) and model.unbounded == ""


@pytest.mark.parametrize("name", sorted(SMALL_ARCHS))
def test_reach_of_our_networks_is_the_graphs(name):
    from bam_plugin.conversion.lowering import lower_network

    net = ARCH_REGISTRY.get(name)(**SMALL_ARCHS[name], upscale=2, binarizer="xnor").eval()
    assert find_reach(net, find_sizes(net, 3), 3).radius == lower_network(net, num_in_ch=3)[0].receptive_radius


class Host(nn.Module):
    """A head, something in the middle, a tail."""

    def __init__(self, middle):
        super().__init__()
        self.head, self.middle = nn.Conv2d(3, 4, 3, padding=1), middle
        self.tail = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.tail(self.middle(self.head(x)))


class Attention(nn.Module):
    """Every pixel attends to all."""

    def forward(self, x):
        flat = x.flatten(2)
        return (flat @ torch.softmax(flat.transpose(1, 2) @ flat, -1)).view_as(x)


class Strided(nn.Module):
    """Down by 2 and up again: pixels differ by their place on the coarse grid."""

    def forward(self, x):
        return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)


class Unshuffled(nn.Module):
    def forward(self, x):
        return F.pixel_shuffle(F.pixel_unshuffle(x, 3), 3)


class Compared(nn.Module):
    """A comparison with the brightness of all pixels: no NaN comes through."""

    def __init__(self, *, path):
        super().__init__()
        self.path = path

    def forward(self, x):
        return (x if self.path else 0) + torch.where(x > x.mean(dim=(2, 3), keepdim=True), 1.0, 0.0)


class Reflected(nn.Module):
    """Reflection by 6 pixels needs pictures of at least 7."""

    def forward(self, x):
        return F.avg_pool2d(F.pad(x, (6, 6, 6, 6), mode="reflect"), 13, 1)


@pytest.mark.parametrize(
    ("middle", "sizes", "radius", "reason"),
    [
        (nn.Identity(), (1, 1), 1, ""),
        (nn.Conv2d(4, 4, 5, padding=6, dilation=3), (1, 1), 7, ""),
        (nn.Conv2d(4, 4, (1, 9), padding=(0, 4)), (1, 1), 5, ""),
        (nn.MaxPool2d(5, 1, 2), (1, 1), 3, ""),
        (nn.GroupNorm(2, 4), (1, 1), None, r"middle \(GroupNorm\) sees the whole picture"),
        (nn.InstanceNorm2d(4, affine=True), (1, 2), None, r"middle \(InstanceNorm2d\) sees the whole picture"),
        (Attention(), (1, 1), None, r"middle \(Attention\) sees the whole picture"),
        (Strided(), (2, 2), None, r"middle \(Strided\) does not treat all pixels alike"),
        (Unshuffled(), (3, 3), 1, ""),
        (Reflected(), (1, 7), 7, ""),
        (Compared(path=False), (1, 1), None, "hides what a pixel depends on"),
        (Compared(path=True), (1, 1), None, "more than the 1 around"),
        (nn.Sequential(*(nn.Conv2d(4, 4, 31, padding=15) for _ in range(36))), (1, 1), None, "more than 512"),
    ],
)
def test_reach_and_sizes_of_other_layers(middle, sizes, radius, reason):
    torch.manual_seed(1)
    net = Host(middle).eval()
    found = find_sizes(net, 3)
    assert (found.multiple, found.least, found.scale, found.channels) == (*sizes, 1, 3)
    reach = find_reach(net, found, 3)
    assert reach.radius == radius
    assert re.search(reason, reach.unbounded) if reason else reach.unbounded == ""


def test_reach_is_enough_and_not_too_much():
    """What lies beyond the radius changes nothing; what lies at it does."""
    net = network("RRDBNet")
    for module in net.modules():  # signs have no derivative
        if hasattr(module, "binarize_activation"):
            module.binarize_activation = type(CONTINUOUS)(num_feat=module.in_channels)
    radius = converted("RRDBNet").model.receptive_radius
    x = torch.rand(1, 3, 1, 2 * radius + 5, dtype=torch.float64, requires_grad=True)
    centre = radius + 2
    net.double()(x)[..., 4 * centre : 4 * centre + 4].sum().backward()
    reached = x.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    assert (int(reached[0]), int(reached[-1])) == (centre - radius, centre + radius)


def test_network_that_fits_no_size_is_refused():
    with pytest.raises(ConversionError, match=r"Linear does not run on pictures of .* \(RuntimeError"):
        find_sizes(nn.Linear(3, 3), 3)
    with pytest.raises(ConversionError, match="enlarged by a whole number"):
        find_sizes(nn.AvgPool2d(2), 3)
    with pytest.raises(ConversionError, match="no binary convolution"):
        make_mixed(Host(nn.Identity()), num_in_ch=3, metadata={}, no_graph="")


class Squarish(nn.Module):
    def forward(self, x):
        if max(x.shape[2:]) > 4 * min(x.shape[2:]):
            raise ValueError("too narrow")
        return x


def test_a_network_that_takes_no_strips_is_blended():
    net = Host(Squarish()).eval()
    reach = find_reach(net, find_sizes(net, 3), 3)
    assert reach == Reach(None, "its reach could not be measured (ValueError: too narrow)")
    diverged = Host(nn.Identity()).eval()
    with torch.no_grad():
        diverged.head.bias.fill_(torch.inf)
    with pytest.raises(ConversionError, match="not finite"):
        find_reach(diverged, Sizes(1, 1, 1, 3), 3)


def test_any_size_is_fitted():
    net = Host(Unshuffled()).eval()
    sizes = find_sizes(net, 3)
    assert sizes == Sizes(3, 3, 1, 3) and [sizes.fit(n) for n in (1, 3, 4)] == [3, 3, 6]
    x = torch.rand(2, 3, 7, 5)
    with torch.no_grad():
        assert torch.equal(run_fitted(net, x, sizes), net(F.pad(x, (0, 1, 0, 2), mode="replicate"))[:, :, :7, :5])


@pytest.mark.parametrize("host", [host for host in MIXED if host != "RIDNet"])  # which is white: untrained
def test_tiles_are_joined_or_blended(host):
    """Joined where the radius is finite: equal within a step. Blended elsewhere: near, and said."""
    upscaler = Upscaler(mixed_model(host), threads=1)
    image = np.rint(picture(75, 90, seed=2) * 255).astype(np.uint8)
    whole, tiled = upscaler.upscale(image, tile=0), upscaler.upscale(image, tile=36)
    assert whole.shape == (75 * upscaler.scale, 90 * upscaler.scale, 3) and whole.std() > 1
    difference = np.abs(whole.astype(int) - tiled)
    if host in REASONS:
        assert upscaler.receptive_radius is None
        assert difference.mean() <= 0.3 and difference.max() <= 12
    else:
        assert difference.max() <= 1


def test_memory_of_a_tile_is_measured():
    engine = MixedEngine(mixed_model("RCAN"), threads=1)
    maps = engine.bytes_per_pixel / 4
    assert 8 * 3 <= maps <= 8 * 24  # some maps of 8 channels live at a time
    wide = copy.deepcopy(engine)
    del wide.bytes_per_pixel
    wide.network = nn.Sequential(engine.network, nn.Conv2d(3, 400, 1), nn.Conv2d(400, 3, 1))
    assert wide.bytes_per_pixel > 4 * 400 * 4


CONTINUOUS = network("EDSR", activation_binarizer="float").host.body[0].conv1.conv.binarize_activation
