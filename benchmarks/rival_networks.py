"""Small full-precision networks of others, built from their authors' weight files, for `pareto.py`.

The files are those of https://github.com/ECNUSR/ETDS (`experiments/pretrained_models`), in a folder of the user's. The
shape of a network follows from its weights: every convolution but FSRCNN's and ESPCN's is 3x3 with padding.

- Plain: a chain of convolutions with ReLU, PixelShuffle.
- ECBSR: a chain with PReLU in its folded form, plus each input channel repeated, PixelShuffle.
- ABPN: a chain with ReLU, one more convolution, plus each input channel repeated, PixelShuffle.
- ETDS: a chain with ReLU in its inference form, a 1x1 convolution with ReLU, PixelShuffle. One channel more at x3.
- FSRCNN: convolutions with PReLU, a transposed convolution. ESPCN: convolutions with tanh, PixelShuffle, sigmoid.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = dict[str, Tensor]


class Chain(nn.Module):
    """Convolutions of given weights, one behind the other, and what a family puts around them."""

    def __init__(self, *, weights: Weights, family: str, scale: int):
        super().__init__()
        self.family, self.scale = family, scale
        names = sorted({name.rsplit(".", 1)[0] for name, value in weights.items() if value.dim() == 4}, key=_order)
        self.convs = nn.ModuleList(_conv(weights, name) for name in names)
        slopes = [value for name, value in weights.items() if value.dim() == 1 and not name.endswith(".bias")]
        self.slopes = nn.ParameterList(nn.Parameter(value) for value in slopes)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> (1, 3, H * scale, W * scale)."""
        repeated = x.repeat_interleave(self.scale**2, dim=1)
        last = len(self.convs) - 1
        for index, conv in enumerate(self.convs):
            x = conv(x)
            if self.family == "ETDS" or index < last:
                x = F.prelu(x, self.slopes[index]) if self.slopes else F.relu(x)
        if self.family in ("ECBSR", "ABPN"):
            x = x + repeated
        return F.pixel_shuffle(x[:, : 3 * self.scale**2], self.scale)


class FSRCNN(nn.Module):
    """Dong et al., ECCV 2016, on RGB."""

    def __init__(self, *, weights: Weights, scale: int):
        super().__init__()
        names = sorted({name.rsplit(".", 1)[0] for name, value in weights.items() if value.dim() == 4}, key=_order)
        self.convs = nn.ModuleList(_conv(weights, name) for name in names[:-1])
        slopes = [value for name, value in weights.items() if value.dim() == 1 and not name.endswith(".bias")]
        self.slopes = nn.ParameterList(nn.Parameter(value) for value in slopes)
        self.last = nn.ConvTranspose2d(56, 3, 9, stride=scale, padding=4, output_padding=scale - 1)
        _fill(self.last, weights, names[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> (1, 3, H * scale, W * scale)."""
        for conv, slope in zip(self.convs, self.slopes, strict=True):
            x = F.prelu(conv(x), slope)
        return self.last(x)


class ESPCN(nn.Module):
    """Shi et al., CVPR 2016, on RGB."""

    def __init__(self, *, weights: Weights, scale: int):
        super().__init__()
        self.scale = scale
        self.convs = nn.ModuleList(_conv(weights, f"conv{number}") for number in (1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> (1, 3, H * scale, W * scale)."""
        x = torch.tanh(self.convs[1](torch.tanh(self.convs[0](x))))
        return torch.sigmoid(F.pixel_shuffle(self.convs[2](x), self.scale))


class OnPixels(nn.Module):
    """A network from bytes to bytes, as users have them: (1, H, W, 3) uint8 in and out, scaled, clipped and rounded."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """(1, H, W, 3) -> (1, H * scale, W * scale, 3)."""
        x = self.network(pixels.permute(0, 3, 1, 2).float() / 255)
        return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def read_rivals(folder: Path, scale: int) -> dict[str, nn.Module]:
    """The networks of a scale whose weights lie somewhere in `folder`, by name."""
    found = {}
    for path in sorted(folder.rglob(f"*_x{scale}.pth")):
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content.get("params", content)
        name = path.stem.removesuffix(f"_x{scale}")
        family = name.partition("_")[0]
        if family == "FSRCNN":
            network: nn.Module = FSRCNN(weights=weights, scale=scale)
        elif family == "ESPCN":
            network = ESPCN(weights=weights, scale=scale)
        else:
            network = Chain(weights=weights, family=family, scale=scale)
        found[name.replace("_", "-")] = network.eval().requires_grad_(False)
    return found


def _order(name: str) -> tuple:
    """Where a convolution stands in its chain: first, backbone by number, last, clip."""
    place = next((rank for rank, word in enumerate(("first", "backbone", "mid", "last", "clip")) if word in name), 1)
    return place, [int(number) for number in re.findall(r"\d+", name)]


def _conv(weights: Weights, name: str) -> nn.Conv2d:
    out, channels, kernel, _ = weights[f"{name}.weight"].shape
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
    _fill(conv, weights, name)
    return conv


def _fill(conv: nn.Conv2d | nn.ConvTranspose2d, weights: Weights, name: str) -> None:
    conv.load_state_dict({"weight": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]})
