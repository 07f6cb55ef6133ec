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
