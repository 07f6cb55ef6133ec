"""The training pairs of one HR image: mod-crop, MATLAB bicubic LR, sub-images on a common grid.

The LR image is made of the whole HR image and cut afterwards. So the border pixels of a sub-image carry what the
bicubic saw beyond the border, as in DIV2K. HR and LR sub-images cover the same area and have the same key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bam_plugin.data.storage import Entry
from bam_plugin.errors import BamError
from bam_plugin.pictures.bgr import encode_png
from bam_plugin.pictures.imresize import imresize, mod_crop


class TooSmallError(BamError):
    """An image is too small to give a training pair."""


@dataclass(frozen=True)
class Grid:
    """How HR images are cut: squares of `crop_size`, every `step` pixels, the last one flush with the border.

    `crop_size` None keeps whole images. A side shorter than `crop_size` stays whole. Images are first cut to multiples
    of
    `modulus`: 12 serves x2, x3 and x4 with one set of HR images. `min_size` is the least side that is accepted.
    """

    crop_size: int | None = 480
    step: int = 240
    modulus: int = 12
    min_size: int = 0

    def __post_init__(self) -> None:
        if self.crop_size is not None:
            wrong = self.crop_size < 1 or self.step < 1 or self.crop_size % self.modulus or self.step % self.modulus
            if wrong or self.step > self.crop_size:
                raise BamError(
                    f"expected crop size and step to be positive multiples of {self.modulus} with step <= crop size, "
                    f"found {self.crop_size} and {self.step}."
                )

    def usable(self, height: int, width: int) -> tuple[int, int]:
        """The sides (HR pixels) after the mod-crop. Raises TooSmallError."""
        height, width = height - height % self.modulus, width - width % self.modulus
        least = max(self.min_size, self.modulus)
        if min(height, width) < least:
            raise TooSmallError(
                f"{height}x{width} after the crop to multiples of {self.modulus}, expected sides of at least {least}"
            )
        return height, width

    def boxes(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """(top, left, height, width) of each sub-image of a mod-cropped image, row by row."""
        if self.crop_size is None:
            return [(0, 0, height, width)]
        tops, lefts = (_positions(side, self.crop_size, self.step) for side in (height, width))
        size = (min(height, self.crop_size), min(width, self.crop_size))
        return [(top, left, *size) for top in tops for left in lefts]


def common_modulus(scales: Sequence[int]) -> int:
    """The least multiple of 12 that all of `scales` divide."""
    if not scales or any(scale < 2 for scale in scales):
        raise BamError(f"expected scales of at least 2, found {list(scales)}.")
    return math.lcm(12, *scales)


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """The LR image (H / scale, W / scale) of a uint8 image whose sides are multiples of `scale`."""
    return imresize(image, scale=1 / scale)


def make_pairs(
    image: np.ndarray, key: str, *, grid: Grid, scales: Sequence[int], given_lr: dict[int, np.ndarray] | None = None
) -> dict[str, list[Entry]]:
    """Cut `image` (H, W, 3) and its LR images into entries: {"HR": [...], "X2": [...], ...}, keys equal across lists.

    given_lr: LR images that exist already (H / scale, W / scale, 3). MATLAB's bicubic makes the others. Raises
    TooSmallError, and BamError if a given LR image has another size.
    """
    full_height, full_width = image.shape[:2]
    height, width = grid.usable(full_height, full_width)
    image = mod_crop(image, grid.modulus)
    boxes = grid.boxes(height, width)
    keys = [key] if grid.crop_size is None else [f"{key}_s{number:03d}" for number in range(1, len(boxes) + 1)]
    images = {"HR": (image, 1)}
    for scale in scales:
        lr = (given_lr or {}).get(scale)
        if lr is None:
            lr = downscale(image, scale)
        elif lr.shape[:2] != (full_height // scale, full_width // scale):
            raise BamError(
                f"its x{scale} LR image is {lr.shape[0]}x{lr.shape[1]}, expected {full_height // scale}x"
                f"{full_width // scale} for HR {full_height}x{full_width}"
            )
        images[f"X{scale}"] = (lr, scale)
    return {
        name: [
            _entry(name_key, whole[top // s : (top + h) // s, left // s : (left + w) // s])
            for name_key, (top, left, h, w) in zip(keys, boxes, strict=True)
        ]
        for name, (whole, s) in images.items()
    }


def _entry(key: str, image: np.ndarray) -> Entry:
    channels = 1 if image.ndim == 2 else image.shape[2]
    return Entry(key, encode_png(image), (image.shape[0], image.shape[1], channels))


def _positions(side: int, size: int, step: int) -> list[int]:
    if side <= size:
        return [0]
    positions = list(range(0, side - size + 1, step))
    if positions[-1] + size < side:
        positions.append(side - size)
    return positions
