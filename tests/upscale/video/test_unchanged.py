"""Pictures whose unchanged parts are copied equal pictures computed as a whole, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.upscale_models import tiny_model

from bam_plugin.upscale import Upscaler
from bam_plugin.upscale.video.unchanged import TILE, FrameUpscaler


@pytest.mark.parametrize("size", [(200, 300), (64, 64), (5, 400), (130, 129)])
def test_equal_to_whole_pictures(size: tuple[int, int]) -> None:
    upscaler = Upscaler(tiny_model(scale=2), threads=1)
    frames = FrameUpscaler(upscaler=upscaler)
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    for _ in range(12):
        np.testing.assert_array_equal(frames.upscale(pixels), upscaler.upscale(pixels))
        pixels = pixels.copy()
        for _ in range(generator.integers(0, 3)):
            row, column = generator.integers(0, size[0]), generator.integers(0, size[1])
            pixels[row : row + 9, column : column + 9] ^= 255
    assert (frames.computed_pixels < frames.total_pixels) or min(size) <= TILE


def test_results_are_not_changed_by_later_pictures() -> None:
    frames = FrameUpscaler(upscaler=Upscaler(tiny_model(scale=2), threads=1))
    pixels = np.zeros((200, 200, 3), np.uint8)
    first = frames.upscale(pixels)
    kept = first.copy()
    changed = pixels.copy()
    changed[3, 3] = 255
    assert (frames.upscale(changed) != kept).any()
    np.testing.assert_array_equal(first, kept)


def test_another_size_begins_anew() -> None:
    upscaler = Upscaler(tiny_model(scale=2), threads=1)
    frames = FrameUpscaler(upscaler=upscaler)
    for height in (70, 80):
        pixels = np.full((height, 90, 3), 50, np.uint8)
        np.testing.assert_array_equal(frames.upscale(pixels), upscaler.upscale(pixels))
