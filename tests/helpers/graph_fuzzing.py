"""Random graphs that are valid but odd, compared with the reference; for the tests and benchmarks/fuzz_graphs.py.

Every graph follows from its seed. Odd are: numbers of channels around those of registers and words, large kernels,
values that are read far away from where they are made, zeros, subnormal and huge parameters, pictures of one pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np

from bam_plugin.engine import Engine, program
from bam_plugin.engine.kernels import compiled_isas
from bam_plugin.packed import PackedModel
from bam_plugin.packed.format import pack_model, unpack_model
from bam_plugin.packed.graph_builder import GraphBuilder
from bam_plugin.packed.precision import FIELD, INTEGERS, reducible_convs
from helpers.packed_models import binary_layer, float_layer, random_floats, random_thresholds

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 49, 63, 64, 65, 80, 100, 127, 128, 129, 200)
KERNELS = (1, 1, 1, 3, 3, 3, 3, 5, 7, 9, 15, 31)
SIZES = (
    (1, 1), (1, 2), (2, 1), (3, 3), (4, 7), (7, 4), (5, 17), (1, 33), (33, 1), (9, 47), (8, 48), (6, 49), (2, 97),
    (40, 3),
)  # fmt: skip
ODD_NUMBERS = np.array([0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, 1e30, 1, -1, 0.5], np.float32)
LARGEST_COST = 4e5  # multiply-adds for one input pixel
OPERATIONS = {
    "conv2d": 5, "binary": 8, "relu": 1, "leaky_relu": 1, "prelu": 1, "affine": 1, "scale": 1, "clamp": 1, "add": 3,
    "mul": 1, "cat": 2, "channel_mean": 1, "beta": 3, "pixel_shuffle": 2, "resize": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Where an instruction set differs from the reference."""

    seed: int
    isa: str
    precision: str
    size: tuple[int, int]
    what: str


class _Maker:
    def __init__(self, generator: np.random.Generator):
        self.g = generator
        self.odd = 0.1 if generator.random() < 0.3 else 0.0
        self.builder = GraphBuilder(num_in_ch=int(self.pick([1, 3, 3, 3, 4, 8, 16, 17, 64])))
        self.floats = [self.builder.input]

    def pick(self, items):
        return items[self.g.integers(len(items))]

    def value(self) -> str:
        """A float value, the latest one more often than others."""
        return self.floats[-1] if self.g.random() < 0.6 else self.pick(self.floats)

    def numbers(self, *shape: int) -> np.ndarray:
        values = random_floats(self.g, *shape)
        chosen = self.g.random(shape) < self.odd
        values[chosen] = self.g.choice(ODD_NUMBERS, size=int(chosen.sum()))
        return values

    def number(self) -> float:
        return float(self.numbers(1)[0])

    def affordable(self, channels: int, out: int, kernel: int, up) -> bool:
        return channels * out * kernel**2 * up**2 <= LARGEST_COST and out * up**2 <= 4096

    def step(self) -> None:
        names = list(OPERATIONS)
        weights = np.array(list(OPERATIONS.values()), dtype=float)
        name = names[self.g.choice(len(names), p=weights / weights.sum())]
        x = self.value()
        made = getattr(self, f"make_{name}", self.make_plain)(name, x)
        if made is not None:
            self.floats.append(made)

    def make_plain(self, name: str, x: str) -> str:
        channels, attrs, tensors = self.builder.types[x].channels, {}, {}
        if name == "leaky_relu":
            attrs = {"slope": self.number()}
        elif name == "scale":
            attrs = {"factor": self.number()}
        elif name == "clamp":
            low, high = sorted((self.number(), self.number()))
            attrs = {"low": low, "high": high}
        elif name == "channel_mean":
            attrs = {"statistic": self.pick(["mean", "mean_abs"])}
        elif name == "prelu":
            tensors = {"slope": self.numbers(channels)}
        elif name == "affine":
            tensors = {"scale": self.numbers(channels), "shift": self.numbers(channels)}
        return self.builder.add(name, name, x, attrs=attrs, tensors=tensors)

    def make_conv2d(self, name: str, x: str) -> str | None:
        value = self.builder.types[x]
        kernel, out = int(self.pick(KERNELS)), int(self.pick([*CHANNELS, value.channels, 3, 12, 48]))
        groups = stride = 1
        if self.g.random() < 0.25:
            groups = int(self.pick([d for d in range(1, value.channels + 1) if value.channels % d == 0]))
            out = groups * int(self.pick([1, 1, 2, 3]))
        if self.g.random() < 0.1:
            stride = int(self.pick([2, 2, 3]))
        down = value.up / stride if stride > 1 else value.up
        if down < 1 / 6 or not self.affordable(value.channels // groups, out, kernel, value.up):
            return None
        made = float_layer(
            self.builder,
            self.g,
            x,
            "conv",
            out=out,
            kernel=kernel,
            groups=groups,
            stride=stride,
            bias=self.g.random() < 0.7,
        )
        if self.odd:
            weight = self.builder.tensors[f"{made}.weight"]
            weight *= self.numbers(*weight.shape)
            np.nan_to_num(weight, copy=False)
        return made

    def make_binary(self, name: str, x: str) -> str | None:
        value = self.builder.types[x]
        kernel, out = int(self.pick(KERNELS)), int(self.pick([*CHANNELS, value.channels, value.channels]))
        if not self.affordable(value.channels / 16, out, kernel, value.up):
            return None
        alphabet = str(self.pick(["-1,+1", "0,1"]))
        if self.g.random() < 0.3:  # a sign that is read twice
            signs = self.builder.add("threshold", "sign", x, tensors=random_thresholds(self.g, value.channels))
            made = [
                binary_layer(self.builder, self.g, x, "binary", out=out, kernel=kernel, alphabet=alphabet, signs=signs)
                for _ in range(2)
            ]
            made = self.builder.add("add", "both", *made)
        else:
            made = binary_layer(self.builder, self.g, x, "binary", out=out, kernel=kernel, alphabet=alphabet)
        if self.odd:
            for name, array in list(self.builder.tensors.items())[-6:]:
                if name.endswith((".scale", ".threshold")):
                    array[:] = self.numbers(len(array))
        if out == value.channels and self.g.random() < 0.7:
            made = self.builder.add("add", "sum", *self.shuffled(made, x))
        return made

    def shuffled(self, *values: str) -> list[str]:
        return [values[index] for index in self.g.permutation(len(values))]

    def make_add(self, name: str, x: str) -> str:
        value = self.builder.types[x]
        fitting = [
            other
            for other in self.floats
            if self.builder.types[other].up == value.up
            and (
                self.builder.types[other].channels == value.channels
                or 1 in (self.builder.types[other].channels, value.channels)
            )
        ]
        return self.builder.add(name, name, *self.shuffled(x, self.pick(fitting)))

    make_mul = make_add

    def make_cat(self, name: str, x: str) -> str | None:
        value = self.builder.types[x]
        fitting = [other for other in self.floats if self.builder.types[other].up == value.up]
        other = self.pick(fitting)
        if (value.channels + self.builder.types[other].channels) * value.up**2 > 4096:
            return None
        return self.builder.add("cat", "cat", *self.shuffled(x, other))

    def make_beta(self, name: str, x: str) -> str:
        """x * (factor * mean + offset), nearly as accumulated activations have it, and not quite in some."""
        factor = self.builder.add("channel_mean", "mean", x, attrs={"statistic": self.pick(["mean", "mean_abs"])})
        factor = self.builder.add("scale", "factor", factor, attrs={"factor": self.number()})
        if self.g.random() < 0.6:
            ones = np.ones(1, np.float32) if self.g.random() < 0.9 else self.numbers(1)
            factor = self.builder.add("affine", "offset", factor, tensors={"scale": ones, "shift": self.numbers(1)})
        return self.builder.add("mul", "weighed", *self.shuffled(x, factor))

    def make_pixel_shuffle(self, name: str, x: str) -> str | None:
        value = self.builder.types[x]
        factors = [f for f in (2, 3, 4) if value.channels % f**2 == 0 and value.up * f <= 8]
        return self.builder.add(name, name, x, attrs={"factor": int(self.pick(factors))}) if factors else None

    def make_resize(self, name: str, x: str) -> str | None:
        value = self.builder.types[x]
        factors = [f for f in (1, 2, 3, 4) if value.up * f <= 8 and value.channels * (value.up * f) ** 2 <= 4096]
        mode = str(self.pick(["nearest", "bilinear", "bicubic"]))
        return (
            self.builder.add(name, name, x, attrs={"factor": int(self.pick(factors)), "mode": mode})
            if factors
            else None
        )

    def finish(self) -> PackedModel:
        output = self.floats[-1]
        up = self.builder.types[output].up
        if up != int(up):  # back to whole pixels
            output = self.builder.add("resize", "whole", output, attrs={"factor": up.denominator, "mode": "nearest"})
        graph = self.builder.finish(output)
        facts = {}
        convs = reducible_convs(graph)
        if convs and self.g.random() < 0.5:
            ranges = {
                name: [float(f"{r:.4g}") for r in self.g.exponential(2, size) + 1e-3] for name, size in convs.items()
            }
            offer = {"ranges": ranges, "cost_db": {"none": 0.0}, "calibration": {}}
            facts = {FIELD: {name: offer for name in INTEGERS}}
        return PackedModel(graph=graph, tensors=self.builder.tensors, metadata=facts)


def random_model(seed: int) -> PackedModel:
    """A graph of 1 to 14 steps."""
    maker = _Maker(np.random.default_rng(seed))
    steps = int(maker.g.integers(1, 15))
    while len(maker.floats) <= steps:
        maker.step()
    return maker.finish()


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal bits, but for the payload of NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return left.tobytes() == right.tobytes() or (
        left.dtype == np.float32
        and bool(np.all((left.view(np.uint32) == right.view(np.uint32)) | (np.isnan(left) & np.isnan(right))))
    )


def differences(seed: int) -> Iterator[Difference]:
    """Every instruction set, offered precision and way of running that gives other bits than the reference."""
    model = unpack_model(pack_model(random_model(seed)))
    generator = np.random.default_rng([seed, 1])
    size = SIZES[generator.integers(len(SIZES))]
    while (
        size[0] * size[1] > 1
        and size[0] * size[1] * max(t.channels * t.up**2 for t in model.graph.types.values()) > 3e5
    ):
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    image = generator.random((*size, model.num_in_ch), dtype=np.float32)
    if generator.random() < 0.2:
        image = (image - np.float32(0.5)) * np.float32(generator.choice([1, 100, 1e-3]))
    threads, watched = int(generator.choice([1, 1, 3])), generator.random() < 0.2
    strips = int(generator.choice([1, program.STRIP_BYTES]))
    with np.errstate(all="ignore"):
        for precision in ("fp32", *model.metadata.get(FIELD, {})):
            expected: dict[str, np.ndarray] = {}
            result = Engine(model, isa="reference", precision=precision).run(
                image, observe=lambda name, value, seen=expected: seen.update({name: value.copy()})
            )
            for isa in compiled_isas():
                engine = Engine(model, isa=isa, precision=precision, threads=threads)
                with patch.object(program, "STRIP_BYTES", strips):
                    found = engine.run(image)
                if not same(found, result):
                    yield Difference(seed, isa, precision, size, "result")
                if watched:
                    seen: dict[str, np.ndarray] = {}
                    engine.run(image, observe=lambda name, value, seen=seen: seen.update({name: value}))
                    wrong = [name for name, value in expected.items() if not same(seen[name], value)]
                    if wrong:
                        yield Difference(seed, isa, precision, size, f"value {wrong[0]}")
