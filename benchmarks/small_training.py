"""Short trainings at x4 for the comparisons of this folder: patches of whole images, one step, one measure.

Everything is fixed by the generators that the callers seed, so that all variants of a comparison see equal patches.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bam_plugin.data.images import list_images, read_image
from bam_plugin.data.metrics import calculate_psnr_y
from bam_plugin.pictures.imresize import imresize, mod_crop

SCALE, PATCH = 4, 24  # LR patches of 24 x 24, where the caller does not say otherwise
Pairs = list[tuple[np.ndarray, np.ndarray]]


def read_pairs(folder: Path, *, patch: int = PATCH) -> Pairs:
    """(HR, LR by MATLAB's bicubic) of every image of `folder` that holds an LR patch, RGB uint8."""
    images = [mod_crop(read_image(path), SCALE)[..., ::-1] for path in list_images(folder)]
    pairs = [(np.ascontiguousarray(image), imresize(image, scale=1 / SCALE)) for image in images]
    return [(high, low) for high, low in pairs if min(low.shape[:2]) >= patch]


def sample(
    pairs: Pairs, generator: np.random.Generator, *, batch: int, augment: bool, patch: int = PATCH
) -> list[torch.Tensor]:
    """One batch of LR and HR patches, (N, 3, P, P) and (N, 3, 4 P, 4 P) in [0, 1]; flipped and turned if `augment`."""
    patches: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for index in generator.integers(len(pairs), size=batch):
        high, low = pairs[index]
        row, column = (int(generator.integers(side - patch + 1)) for side in low.shape[:2])
        flip, turns = (1 - 2 * int(generator.integers(2)), int(generator.integers(4))) if augment else (1, 0)
        for taken, image, factor in ((patches[0], low, 1), (patches[1], high, SCALE)):
            size = patch * factor
            piece = image[row * factor : row * factor + size, column * factor : column * factor + size]
            taken.append(np.rot90(piece[:, ::flip], turns))
    return [torch.from_numpy(np.stack(taken)).permute(0, 3, 1, 2).float().div(255) for taken in patches]


def training_step(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, low: torch.Tensor, high: torch.Tensor, *, bf16: bool
) -> float:
    """One step on the L1 loss, which is returned."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = network(low.contiguous(memory_format=torch.channels_last))
    loss = (out.float() - high).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def measure(network: torch.nn.Module, pairs: Pairs) -> float:
    """Mean PSNR in dB of the Y channel of the 8-bit results, cropped by the scale."""
    network.eval()
    values = []
    for high, low in pairs:
        image = torch.from_numpy(low).permute(2, 0, 1)[None].float().div(255)
        out = network(image)[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte().numpy()
        values.append(calculate_psnr_y(out[..., ::-1], high[..., ::-1], SCALE))
    network.train()
    return float(np.mean(values))


class Results:
    """The results of a comparison in a file of JSON lines (or in none), so that one that was stopped goes on."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def has(self, key: dict[str, Any]) -> bool:
        """Whether a line has the values of `key`."""
        if self.path is None or not self.path.exists():
            return False
        return any(key.items() <= json.loads(line).items() for line in self.path.read_text().splitlines())

    def add(self, key: dict[str, Any], **values: float) -> None:
        """Append a line."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({**key, **values}) + "\n")
