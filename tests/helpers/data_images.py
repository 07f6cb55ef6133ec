"""Synthetic pictures with enough structure for resizing, hashing and metrics, and helpers that write them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): random shapes on a smooth ground, some texture; the same for the same arguments."""
    generator = np.random.default_rng(seed)
    ground = cv2.resize(generator.integers(60, 200, (4, 4, 3), dtype=np.uint8), (width, height))
    for _ in range(60):
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        if generator.random() < 0.5:
            cv2.circle(ground, centre, int(generator.integers(2, 2 + height // 8)), colour, -1, cv2.LINE_AA)
        else:
            end = (int(generator.integers(width)), int(generator.integers(height)))
            cv2.line(ground, centre, end, colour, int(generator.integers(1, 6)), cv2.LINE_AA)
    noise = generator.normal(0, 4, ground.shape)
    return np.clip(ground + noise, 0, 255).astype(np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    """Write `image` in the format of the suffix; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode(path.suffix, image)
    assert done
    path.write_bytes(content.tobytes())
    return path


def textured_picture(generator: np.random.Generator, size: int) -> np.ndarray:
    """A few random waves per channel plus a hard edge, uint8 (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    image = np.zeros((size, size, 3))
    for channel in range(3):
        for _ in range(3):
            fy, fx, phase = generator.uniform(-5, 5, 3)
            image[..., channel] += np.sin(2 * np.pi * (fy * y + fx * x) + phase) / 3
    image += np.where(x * generator.uniform(-1, 1) + y > generator.uniform(0.2, 0.8), 0.5, -0.5)[..., None]
    return np.clip(128 + 80 * image, 0, 255).round().astype(np.uint8)


def contains(sheet: np.ndarray, part: np.ndarray) -> bool:
    """Whether the image `part` lies in the image `sheet`, pixel by pixel."""
    _, _, (left, top), _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, part, cv2.TM_SQDIFF))
    return bool((sheet[top : top + part.shape[0], left : left + part.shape[1]] == part).all())
