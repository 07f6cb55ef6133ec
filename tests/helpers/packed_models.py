"""Small packed networks made by hand, for the tests of the packed format, the engine and the kernels."""

from __future__ import annotations

import numpy as np

from bam_plugin.packed.bits import pack_filters
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import packed_filter_bytes
from bam_plugin.packed.graph_builder import GraphBuilder


def random_filters(generator: np.random.Generator, out: int, kernel: int, channels: int) -> np.ndarray:
    """Packed random binary filters."""
    return pack_filters(generator.random((out, kernel, kernel, channels)) < 0.5)


def random_floats(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(np.float32)


def random_thresholds(generator: np.random.Generator, channels: int) -> dict[str, np.ndarray]:
    flip = (generator.random(channels) < 0.3).astype(np.uint8)
    return {"threshold": 0.3 * random_floats(generator, channels), "flip": flip}


def binary_layer(
    builder: GraphBuilder,
    generator: np.random.Generator,
    value: str,
    name: str,
    *,
    out: int,
    kernel: int,
    alphabet: str = "-1,+1",
    signs: str | None = None,
) -> str:
    """threshold + binary_conv2d with random parameters; `signs` are those of a threshold that is there already."""
    channels = builder.types[value].channels
    if signs is None:
        signs = builder.add("threshold", f"{name}.sign", value, tensors=random_thresholds(generator, channels))
    tensors = {
        "weight": random_filters(generator, out, kernel, channels),
        "scale": 0.05 * random_floats(generator, out),
    }
    assert tensors["weight"].shape == (out, packed_filter_bytes(channels, kernel))
    return builder.add("binary_conv2d", name, signs, attrs={"kernel": kernel, "alphabet": alphabet}, tensors=tensors)


def float_layer(
    builder: GraphBuilder,
    generator: np.random.Generator,
    value: str,
    name: str,
    *,
    out: int,
    kernel: int = 3,
    groups: int = 1,
    stride: int = 1,
    bias: bool = True,
) -> str:
    """conv2d with random weights."""
    channels = builder.types[value].channels // groups
    weight = random_floats(generator, out, channels, kernel, kernel) / np.float32(kernel * np.sqrt(channels))
    attrs = {attr: number for attr, number in (("groups", groups), ("stride", stride)) if number > 1}
    tensors = {"weight": weight} | ({"bias": 0.1 * random_floats(generator, out)} if bias else {})
    return builder.add("conv2d", name, value, attrs=attrs, tensors=tensors)


def spatial_beta(builder: GraphBuilder, value: str, name: str, *, factor: float, offset: float) -> str:
    """value * (factor * mean|value| + offset), as BSRN weighs its accumulated activations."""
    mean = builder.add("channel_mean", f"{name}.mean", value, attrs={"statistic": "mean_abs"})
    scaled = builder.add("scale", f"{name}.scale", mean, attrs={"factor": float(np.float32(factor))})
    constants = {"scale": np.ones(1, np.float32), "shift": np.full(1, offset, np.float32)}
    shifted = builder.add("affine", f"{name}.offset", scaled, tensors=constants)
    return builder.add("mul", f"{name}.mul", value, shifted)


def lb_block(builder: GraphBuilder, generator: np.random.Generator, value: str, name: str, *, kernel: int = 3) -> str:
    """One LB block as BSRN's default has it: identity path, spatial betas."""
    channels = builder.types[value].channels
    conv3 = binary_layer(builder, generator, value, f"{name}.conv3", out=channels, kernel=kernel)
    a1 = builder.add("add", f"{name}.a1", conv3, value)
    weighted1 = spatial_beta(builder, a1, f"{name}.beta1", factor=0.1, offset=0.5)
    conv_a = binary_layer(builder, generator, a1, f"{name}.conv1_a", out=channels, kernel=1)
    a2 = builder.add("add", f"{name}.a2", conv_a, weighted1)
    conv_b = binary_layer(builder, generator, a2, f"{name}.conv1_b", out=channels, kernel=1)
    out = builder.add("add", f"{name}.sum", conv_b, weighted1)
    return builder.add("add", name, out, spatial_beta(builder, a2, f"{name}.beta2", factor=-0.05, offset=1.0))


def residual_block(builder: GraphBuilder, generator: np.random.Generator, value: str, name: str) -> str:
    """Two 3x3 binary convolutions with PReLU and affine norms around one identity path."""
    channels = builder.types[value].channels
    first = binary_layer(builder, generator, value, f"{name}.conv1", out=channels, kernel=3)
    norm = {"scale": random_floats(generator, channels), "shift": random_floats(generator, channels)}
    first = builder.add("affine", f"{name}.norm", first, tensors=norm)
    first = builder.add("prelu", f"{name}.prelu", first, tensors={"slope": random_floats(generator, channels)})
    second = binary_layer(builder, generator, first, f"{name}.conv2", out=channels, kernel=3)
    return builder.add("add", name, second, value)


def small_model(
    *, channels: int = 12, blocks: int = 2, scale: int = 2, seed: int = 0, in_channels: int = 3
) -> PackedModel:
    """A BSRN-like network with every kind of op that one has."""
    generator = np.random.default_rng(seed)
    builder = GraphBuilder(num_in_ch=in_channels)
    value = float_layer(builder, generator, builder.input, "head", out=channels)
    value = builder.add("relu", "act", value)
    for index in range(blocks):
        value = lb_block(builder, generator, value, f"body.{index}")
    value = residual_block(builder, generator, value, "residual")
    value = float_layer(builder, generator, value, "tail", out=in_channels * scale**2)
    value = builder.add("pixel_shuffle", "shuffle", value, attrs={"factor": scale})
    skip = builder.add("resize", "skip", builder.input, attrs={"factor": scale, "mode": "bilinear"})
    graph = builder.finish(builder.add("add", "output", value, skip))
    return PackedModel(graph=graph, tensors=builder.tensors, metadata={"arch": "small", "seed": seed})


def every_operation() -> PackedModel:
    """A graph with each kind of node, whose values stay away from thresholds but where the test puts them there."""
    generator = np.random.default_rng(3)
    builder = GraphBuilder(num_in_ch=3)
    value = float_layer(builder, generator, builder.input, "head", out=12, kernel=5)
    value = builder.add("leaky_relu", "leaky", value, attrs={"slope": 0.25})
    value = builder.add("scale", "half", value, attrs={"factor": 0.5})
    joined = builder.add("cat", "cat", value, builder.input)
    value = builder.add("add", "joined", value, float_layer(builder, generator, joined, "mix", out=12, groups=3))
    value = builder.add("add", "deep", value, float_layer(builder, generator, value, "depthwise", out=12, groups=12))
    value = lb_block(builder, generator, value, "block")
    value = residual_block(builder, generator, value, "residual")
    value = builder.add("clamp", "clamp", value, attrs={"low": -1.5, "high": 1.25})
    parts = []
    for mode in ("nearest", "bilinear", "bicubic", "matlab"):
        attrs = {"mode": mode} if mode != "matlab" else {"mode": "bicubic", "coefficient": -0.5}
        grown = builder.add("resize", mode, value, attrs={"factor": 2, **attrs})
        parts.append(float_layer(builder, generator, grown, f"{mode}.conv", out=12, kernel=1))
    total = parts[0]
    for part in parts[1:]:
        total = builder.add("add", "sum", total, part)
    total = builder.add("relu", "relu", total)
    output = builder.add("pixel_shuffle", "shuffle", total, attrs={"factor": 2})
    return PackedModel(graph=builder.finish(output), tensors=builder.tensors)
