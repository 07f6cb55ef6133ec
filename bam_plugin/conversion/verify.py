"""Compare a packed network with the PyTorch network from which it was made.

Both see the same images: fixed ones from a seed, and a part of a real photo in `photo.png` (a perched osprey; its
photographer gave it to the public domain, CC0).

A float operation that rounds differently in front of a threshold can flip a sign, if its input lies next to the
threshold. But in a deep network one flipped sign flips thousands behind it, so the pictures of two runs alone say
little. Therefore
PyTorch runs twice: by itself, and a second time, layer by layer, with the signs of the packed network. There a sign
differs only if its own layer flips it, and the pictures differ only by the rounding of float layers, however deep the
network is. More than a few flipped signs of a million are a fault.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bam_plugin.engine.engine import Engine
from bam_plugin.mixed.mixed_engine import MixedEngine
from bam_plugin.mixed.mixed_network import sizes_of
from bam_plugin.nn.binary_conv import binary_convs
from bam_plugin.packed.bits import words_to_bits
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.pictures.bgr import network_input
from bam_plugin.pictures.read import read_picture

SEED = 20200823
Run = Callable[[np.ndarray], tuple[np.ndarray, Mapping[str, np.ndarray]]]  # image -> picture, bits (True = low) by name
SIZES = ((48, 64), (37, 53), (16, 1), (1, 1))  # height, width: even, odd, narrower than a kernel, one pixel


@dataclass
class Difference:
    """How far pictures are apart.

    Shares are in [0, 1]. Differences are those of 8-bit values; the last is that of floats.
    """

    values: int = 0
    equal: int = 0
    within_one: int = 0
    max_difference: int = 0
    max_float_difference: float = 0.0

    @property
    def equal_share(self) -> float:
        """Share of the 8-bit values that are equal."""
        return self.equal / max(1, self.values)

    @property
    def within_one_share(self) -> float:
        """Share of the 8-bit values that differ by at most 1."""
        return self.within_one / max(1, self.values)

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Count two pictures (H, W, C) in."""
        difference = np.abs(_to_8_bit(expected) - _to_8_bit(found))
        self.values += difference.size
        self.equal += int((difference == 0).sum())
        self.within_one += int((difference <= 1).sum())
        self.max_difference = max(self.max_difference, int(difference.max()))
        self.max_float_difference = max(self.max_float_difference, float(np.abs(expected - found).max()))


@dataclass
class Comparison:
    """The result of a comparison.

    `same_signs`: PyTorch goes on with the packed network's signs; `alone`: each network with its own. `flips`: by
    layer, the signs that differ although all signs before them are the same, and the number of all signs.
    """

    images: int = 0
    same_signs: Difference = field(default_factory=Difference)
    alone: Difference = field(default_factory=Difference)
    flips: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def flipped(self) -> int:
        """Flipped signs of all layers together."""
        return sum(flipped for flipped, _ in self.flips.values())

    @property
    def signs(self) -> int:
        """Signs of all layers together."""
        return sum(total for _, total in self.flips.values())

    @property
    def most_flipped(self) -> tuple[str, float]:
        """The layer with the largest share of flipped signs, and this share; ("", 0.0) if none is flipped."""
        shares = {name: flipped / max(1, total) for name, (flipped, total) in self.flips.items() if flipped}
        return max(shares.items(), key=lambda item: item[1], default=("", 0.0))

    @property
    def agreement(self) -> float:
        """From the same signs: the share of 8-bit values within 1, or of one layer's signs, whichever is smaller."""
        return min(self.same_signs.within_one_share, 1 - self.most_flipped[1])


def seeded_images(channels: int) -> list[np.ndarray]:
    """Fixed pictures (H, W, channels) in [0, 1]: smooth colour with fine grain, in the sizes `SIZES`."""
    generator = np.random.default_rng(SEED)
    images = []
    for height, width in SIZES:
        coarse = generator.random((height // 8 + 2, width // 8 + 2, channels))
        smooth = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
        grain = generator.random((height, width, channels))
        images.append((0.8 * smooth + 0.2 * grain).astype(np.float32))
    return images


def default_images(channels: int) -> list[np.ndarray]:
    """The seeded pictures and, for networks of 1 or 3 channels, a real one, 85 x 63 (H, W)."""
    images = seeded_images(channels)
    if channels in (1, 3):
        images.append(network_input(read_picture(Path(__file__).parent / "photo.png"), channels))
    return images


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.int16)


@contextlib.contextmanager
def _noted_signs(network: nn.Module, given: Mapping[str, np.ndarray]) -> Iterator[dict[str, list[np.ndarray]]]:
    """Inside the block a forward notes, per binarized activation, the bits of each call and base.

    It goes on with the bits of `given`, if there are some.
    """
    noted: dict[str, list[np.ndarray]] = defaultdict(list)

    def exchange(path: str, low: float, base: int, signs: torch.Tensor) -> torch.Tensor:
        bits = given.get(_value_name(path, len(noted[path])))
        noted[path].append((signs[0] <= 0).permute(1, 2, 0).cpu().numpy())
        if bits is None:
            return signs
        is_low = torch.from_numpy(bits).permute(2, 0, 1)[None].to(signs.device)
        return torch.where(is_low, signs.new_tensor(low), torch.ones_like(signs))

    convs = binary_convs(network)
    try:
        for name, conv in convs.items():
            if conv.binarize_activation.alphabet is not None:
                path = f"{name}.binarize_activation".lstrip(".")
                conv.map_hook = functools.partial(exchange, path, conv.binarize_activation.low)
        yield noted
    finally:
        for conv in convs.values():
            conv.map_hook = None


def _run_torch(
    network: nn.Module, image: np.ndarray, given: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """The network's picture (H, W, C) and signs, as `_noted_signs` has them."""
    training = network.training
    try:
        network.eval()
        with torch.inference_mode(), _noted_signs(network, given) as signs:
            result = network(torch.from_numpy(image).permute(2, 0, 1)[None])
    finally:
        network.train(training)
    return result[0].permute(1, 2, 0).float().cpu().numpy(), signs


def _run_packed(engine: Engine, image: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    types = engine.model.graph.types
    signs = {}

    def observe(name: str, value: np.ndarray) -> None:
        if types[name].kind == "signs":
            signs[name] = words_to_bits(value, types[name].channels)

    return engine.run(image, observe=observe), signs


def _run_mixed(engine: MixedEngine, image: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    result, calls = engine.run_observed(image)
    signs = {}
    for path, maps in calls.items():
        for index, bits in enumerate(maps):
            signs[_value_name(f"{path}.binarize_activation", index)] = bits
    return result, signs


def _value_name(path: str, index: int) -> str:
    """How a graph names the signs of an activation's call or base number `index`."""
    return path if index == 0 else f"{path}:{index + 1}"


def compare(network: nn.Module, engine: Engine | MixedEngine, images: Iterable[np.ndarray]) -> Comparison:
    """Run both networks on `images` (float32 (H, W, C) in [0, 1]) and sum up the differences.

    Both see them padded to a size that the network takes, as the engines do it.
    """
    fitted = fitted_images(engine.model, images)
    if isinstance(engine, MixedEngine):
        return compare_runs(network, lambda image: _run_mixed(engine, image), fitted)
    return compare_runs(network, lambda image: _run_packed(engine, image), fitted)


def fitted_images(model: PackedModel | MixedModel, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The images (H, W, C), padded to a size that the network takes, as the engines do it."""
    if isinstance(model, MixedModel):
        fit = sizes_of(model).fit
    else:
        multiple = model.graph.size_multiple

        def fit(length: int) -> int:
            return -(-length // multiple) * multiple

    for image in images:
        yield _padded(image, [fit(length) for length in image.shape[:2]])


def _padded(image: np.ndarray, size: list[int]) -> np.ndarray:
    return np.pad(image, [(0, size[0] - image.shape[0]), (0, size[1] - image.shape[1]), (0, 0)], mode="edge")


def compare_runs(
    network: nn.Module,
    run: Run,
    images: Iterable[np.ndarray],
    *,
    run_alone: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Comparison:
    """The same for anything that makes pictures and shows its signs, such as an ONNX runtime.

    `run_alone` makes the pictures of the part `alone`, if the network that shows its signs is not the one delivered.
    """
    found = Comparison()
    flips: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for image in images:
        picture, given = run(image)
        found.images += 1
        found.alone.add(_run_torch(network, image, {})[0], run_alone(image) if run_alone else picture)
        expected, own = _run_torch(network, image, given)
        found.same_signs.add(expected, picture)
        for path, calls in own.items():
            for index, signs in enumerate(calls):
                name = _value_name(path, index)
                if name in given:  # the graph leaves out a layer whose result nobody reads
                    flips[name][0] += int((signs != given[name]).sum())
                    flips[name][1] += signs.size
    found.flips = {name: (flipped, total) for name, (flipped, total) in flips.items()}
    return found
