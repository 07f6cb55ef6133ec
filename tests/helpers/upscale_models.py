"""Small packed networks for the tests of upscaling: real graphs and files, quick to run, with every kind of layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bam_plugin.packed import PackedModel, write_packed
from bam_plugin.packed.graph import packed_filter_bytes
from bam_plugin.packed.graph_builder import GraphBuilder


def tiny_model(*, scale: int = 4, channels: int = 3, features: int = 8, seed: int = 0) -> PackedModel:
    """Bilinear enlargement plus a visible binary detail: head, sign, binary conv, tail, pixel shuffle, radius 3."""
    generator = np.random.default_rng(seed)
    builder = GraphBuilder(num_in_ch=channels)

    def conv(name: str, value: str, out: int, gain: float) -> str:
        fan_in = builder.types[value].channels
        weight = generator.normal(0, gain / np.sqrt(9 * fan_in), (out, fan_in, 3, 3)).astype(np.float32)
        return builder.add("conv2d", name, value, tensors={"weight": weight})

    head = conv("head", builder.input, features, 1.0)
    signs = builder.add(
        "threshold",
        "sign",
        head,
        tensors={
            "threshold": generator.normal(0, 0.2, features).astype(np.float32),
            "flip": generator.integers(0, 2, features).astype(np.uint8),
        },
    )
    body = builder.add(
        "binary_conv2d",
        "body",
        signs,
        attrs={"kernel": 3, "alphabet": "-1,+1"},
        tensors={
            # 9 * features bits fill whole bytes for 8 features: no padding bits to clear.
            "weight": generator.integers(0, 256, (features, packed_filter_bytes(features, 3))).astype(np.uint8),
            "scale": np.full(features, 0.02, np.float32),
        },
    )
    tail = conv("tail", builder.add("add", "skip", head, body), channels * scale**2, 0.15)
    detail = builder.add("pixel_shuffle", "shuffle", tail, attrs={"factor": scale})
    base = builder.add("resize", "base", builder.input, attrs={"factor": scale, "mode": "bilinear"})
    graph = builder.finish(builder.add("add", "sum", base, detail))
    return PackedModel(graph=graph, tensors=builder.tensors, metadata={"arch": {"type": "Tiny"}})


def write_tiny(folder: Path, *, name: str = "tiny", scale: int = 4, **options) -> Path:
    """Write `tiny_model` as NAME_xSCALE.bam.safetensors and return the path."""
    path = folder / f"{name}_x{scale}.bam.safetensors"
    write_packed(tiny_model(scale=scale, **options), path)
    return path
