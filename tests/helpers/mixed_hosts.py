"""Small hosts of BasicSR with binary convolutions that no packed graph expresses, and the files made of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import nn

from bam_plugin.conversion.converter import Conversion, convert_network
from bam_plugin.packed.format import unpack_any
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.toolbox.networks import build_network
from helpers.networks import HOSTS, enliven

MIXED = ("ECBSR", "RCAN", "RIDNet", "SwinIR")
"""Hosts that become mixed files; the other ones of `HOSTS` become graphs."""


def section(host: str, **recipe: Any) -> dict[str, Any]:
    """The option section of a binarized host."""
    return {"type": "Binarized", "host": {"type": host, **HOSTS[host][0]}, "recipe": recipe}


def network(host: str, **recipe: Any) -> nn.Module:
    """A host as a training could leave it, in evaluation mode."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    return enliven(build_network(section(host, **recipe))).eval()


@functools.cache
def converted(host: str) -> Conversion:
    """Its conversion, compared with PyTorch on the default pictures."""
    return convert_network(network(host), metadata={"network_g": section(host), "source_sha256": "0" * 64})


def mixed_model(host: str) -> MixedModel:
    """The content of its file, as read."""
    model = unpack_any(converted(host).data, where=host)
    assert isinstance(model, MixedModel)
    return model


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colour, float32 (H, W, 3) in [0, 1]."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((height // 6 + 2, width // 6 + 2, 3))
    return np.kron(coarse, np.ones((6, 6, 1)))[:height, :width].astype(np.float32)


def run_float(net: nn.Module, image: np.ndarray) -> np.ndarray:
    """The float-simulated network on (H, W, C)."""
    with torch.no_grad():
        return net(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
