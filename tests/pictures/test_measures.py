"""PSNR and SSIM without BasicSR equal BasicSR's on the same channel, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from bam_plugin.pictures.measures import MeasureError, luma, psnr_y, ssim_y


def pair(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A random image and the same with noise."""
    generator = np.random.default_rng(len(shape))
    image = generator.integers(0, 256, shape, dtype=np.uint8)
    return image, np.clip(image.astype(int) + generator.integers(-9, 10, shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("border", [0, 2, 4])
@pytest.mark.parametrize("shape", [(64, 70, 3), (33, 41)])
def test_equal_to_basicsr(shape: tuple[int, ...], border: int) -> None:
    metrics = pytest.importorskip("bam_plugin.toolbox.compat").require_basicsr().metrics
    result, target = pair(shape)
    channels = [luma(image, full_range=target.ndim == 2) for image in (result, target)]
    assert psnr_y(result, target, border) == metrics.calculate_psnr(*channels, crop_border=border)
    assert ssim_y(result, target, border) == metrics.calculate_ssim(*channels, crop_border=border)


def test_limits() -> None:
    image, _ = pair((24, 20, 3))
    assert psnr_y(image, image, 2) == float("inf")
    assert ssim_y(image, image, 2) == 1
    with pytest.raises(MeasureError, match="one size"):
        psnr_y(image, image[:-1], 2)
    with pytest.raises(MeasureError, match="no pixel left"):
        psnr_y(image, image, 10)
    with pytest.raises(MeasureError, match="11 pixels a side"):
        ssim_y(image, image, 5)
