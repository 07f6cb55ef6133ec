"""Comparison of a packed network with the PyTorch network it was made from.

Both see the same images: fixed ones from a seed, and the part of a real photo that `photo.png` holds (a perched osprey;
its photographer gave it to the public domain, CC0). Reported are the differences of the 8-bit pictures and, layer by
layer, the signs that came out differently: a float operation that rounds differently in front of a threshold can flip a
sign whose input lies next to it, and only there.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.packed.engine import Engine
from bam_plugin.packed.mixed_engine import MixedEngine
from bam_plugin.packed.reference import words_to_bits

SEED = 20200823
SIZES = ((48, 64), (37, 53), (16, 1), (1, 1))  # height, width: even, odd, narrower than a kernel, one pixel


@dataclass
class Comparison:
    """What a comparison found. Shares are in [0, 1]; differences are of 8-bit values."""

    images: int = 0
    values: int = 0
    max_difference: int = 0
    equal_share: float = 1.0
    within_one_share: float = 1.0
    max_float_difference: float = 0.0
    flips: dict[str, tuple[int, int]] = field(default_factory=dict)  # layer -> (flipped signs, all signs)

    @property
    def flipped(self) -> int:
        """Flipped signs of all layers together."""
        return sum(flipped for flipped, _ in self.flips.values())

    @property
    def signs(self) -> int:
        """Signs of all layers together."""
        return sum(total for _, total in self.flips.values())


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
    """The seeded pictures, and for networks of 1 or 3 channels a real one, 85 x 63 (H, W)."""
    images = seeded_images(channels)
    if channels in (1, 3):
        content = np.frombuffer((Path(__file__).parent / "photo.png").read_bytes(), dtype=np.uint8)
        photo = decode_picture(content, channels)
        assert photo is not None
        images.append(photo)
    return images


def decode_picture(content: np.ndarray, channels: int) -> np.ndarray | None:
    """The bytes of a picture file -> float32 (H, W, channels) in [0, 1], grey or RGB; None if it cannot be read."""
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    pixels = cv2.imdecode(content, flag) if content.size else None
    if pixels is None:
        return None
    pixels = pixels[:, :, None] if channels == 1 else pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255)


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.int16)


def _run_torch(network: nn.Module, image: np.ndarray) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """The network's picture (H, W, C) and, per binarized activation, the bits (True = low) of each call and base."""
    signs: dict[str, list[np.ndarray]] = defaultdict(list)

    def note(module: BinaryConv2d, inputs: tuple[torch.Tensor, ...], path: str) -> None:
        activation = module.binarize_activation
        maps = [activation.split(inputs[0])] if activation.has_magnitude else activation.decompose(inputs[0])
        for values, _ in maps if activation.alphabet is not None else []:
            signs[path].append((values[0] <= 0).permute(1, 2, 0).cpu().numpy())

    handles = [
        module.register_forward_pre_hook(functools.partial(note, path=f"{name}.binarize_activation".lstrip(".")))
        for name, module in network.named_modules()
        if isinstance(module, BinaryConv2d)
    ]
    training = network.training
    try:
        network.eval()
        with torch.inference_mode():
            result = network(torch.from_numpy(image).permute(2, 0, 1)[None])
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
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

    A mixed network sees them padded to a size that it takes, as in `MixedEngine.run`.
    """
    if isinstance(engine, MixedEngine):
        fitted = (_padded(image, [engine.sizes.fit(length) for length in image.shape[:2]]) for image in images)
        return _compare(network, lambda image: _run_mixed(engine, image), fitted)
    return _compare(network, lambda image: _run_packed(engine, image), images)


def _padded(image: np.ndarray, size: list[int]) -> np.ndarray:
    return np.pad(image, [(0, size[0] - image.shape[0]), (0, size[1] - image.shape[1]), (0, 0)], mode="edge")


def compare_pictures(
    network: nn.Module, run: Callable[[np.ndarray], np.ndarray], images: Iterable[np.ndarray]
) -> Comparison:
    """The same for anything that makes pictures, such as an ONNX runtime: no signs are compared."""
    return _compare(network, lambda image: (run(image), {}), images)


def _compare(
    network: nn.Module,
    run: Callable[[np.ndarray], tuple[np.ndarray, dict[str, np.ndarray]]],
    images: Iterable[np.ndarray],
) -> Comparison:
    found = Comparison()
    equal = within = 0
    flips: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for image in images:
        expected, expected_signs = _run_torch(network, image)
        packed, packed_signs = run(image)
        difference = np.abs(_to_8_bit(expected) - _to_8_bit(packed))
        found.images += 1
        found.values += difference.size
        found.max_difference = max(found.max_difference, int(difference.max()))
        found.max_float_difference = max(found.max_float_difference, float(np.abs(expected - packed).max()))
        equal += int((difference == 0).sum())
        within += int((difference <= 1).sum())
        for path, calls in expected_signs.items():
            for index, signs in enumerate(calls):
                name = _value_name(path, index)
                if name in packed_signs:  # a layer whose result nobody reads is not in the graph
                    flips[name][0] += int((signs != packed_signs[name]).sum())
                    flips[name][1] += signs.size
    found.equal_share = equal / max(1, found.values)
    found.within_one_share = within / max(1, found.values)
    found.flips = {name: (flipped, total) for name, (flipped, total) in flips.items()}
    return found
