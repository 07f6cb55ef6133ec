"""Networks beside the package's own: what torch calls and modules become, compared with PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.networks import enliven
from torch import Tensor, nn

from bam_plugin.conversion.converter import convert_network
from bam_plugin.conversion.onnx_export import export_onnx, onnx_runner
from bam_plugin.engine import Engine
from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.packed import ConversionError
from bam_plugin.packed.format import format_version, pack_model, unpack_model


class TwoPlanes(nn.Module):
    """Float stem that also feeds the tail; steps of two parallel binary convolutions, each with a depthwise one behind.

    (N, 3, H, W) -> (N, 3, 4 H, 4 W).
    """

    def __init__(self, *, stem: int = 16, body: int = 64, steps: int = 2):
        super().__init__()
        layers = [(3, stem), (stem, stem), (stem, stem)]
        self.stem = nn.Sequential(*(part for i, o in layers for part in (nn.Conv2d(i, o, 3, padding=1), nn.PReLU(o))))
        self.head = nn.Conv2d(stem, body, 3, padding=1)
        self.planes = nn.ModuleList(
            nn.ModuleList([BinaryConv2d(in_channels=body, out_channels=body, output_scale="channel") for _ in range(2)])
            for _ in range(steps)
        )
        self.deep = nn.ModuleList(
            nn.Sequential(nn.Conv2d(body, body, 3, padding=1, groups=body), nn.PReLU(body)) for _ in range(steps)
        )
        self.tail = nn.Conv2d(body + stem, 48, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        h = self.head(stem)
        for (a, b), deep in zip(self.planes, self.deep, strict=True):
            h = h + a(h) + b(h)
            h = h + deep(h)
        skip = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
        return F.pixel_shuffle(self.tail(torch.cat([h, stem], dim=1)), 4) + skip


class HalfSize(nn.Module):
    """Works at half the size: a strided convolution in front, PixelShuffle behind; three maps are joined."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.body = BinaryConv2d(in_channels=16, out_channels=16)
        self.mix = nn.Conv2d(48, 24, 1, groups=2)
        self.up = nn.Conv2d(24, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        b = self.body(h)
        return x + F.pixel_shuffle(self.up(self.mix(torch.cat((h, b, h + b), 1))), 2)


@pytest.mark.parametrize(("make", "version"), [(TwoPlanes, 3), (HalfSize, 3)])
def test_converted_network_equals_pytorch(make, version):
    torch.manual_seed(0)
    network = enliven(make()).eval()
    conversion = convert_network(network)
    assert conversion.comparison is not None and conversion.comparison.agreement >= 0.9999
    assert format_version(conversion.model.graph) == version
    assert unpack_model(pack_model(conversion.model)).sha256 == conversion.model.sha256
    image = np.random.default_rng(0).random((12, 18, 3), dtype=np.float32)
    expected = Engine(conversion.model, isa="reference").run(image)
    assert Engine(conversion.model).run(image).tobytes() == expected.tobytes()
    pytest.importorskip("onnxruntime")
    found = onnx_runner(export_onnx(conversion.model), threads=1)(image)
    assert np.mean(np.abs(found - expected) > 1e-4 * np.abs(expected).max()) < 1e-3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: torch.cat([x, x], dim=2), "along their channels"),
        (lambda x: torch.cat([x, torch.zeros(1, 3, 1, 1)], dim=1), "along their channels"),
    ],
)
def test_what_cannot_be_joined_is_named(call, words):
    class Joins(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)

    with pytest.raises(ConversionError, match=words):
        convert_network(Joins())
