"""The measures of `bam_plugin.pictures.measures` in BasicSR's METRIC_REGISTRY, under the names of option files."""

from __future__ import annotations

from typing import Any

import numpy as np
from basicsr.utils.registry import METRIC_REGISTRY

from bam_plugin.pictures.measures import psnr_y, ssim_y


@METRIC_REGISTRY.register()
def calculate_psnr_y(img: np.ndarray, img2: np.ndarray, crop_border: int, **_: Any) -> float:
    """PSNR in dB of result `img` against target `img2`, uint8 BGR (H, W, 3) or grey (H, W), borders cropped."""
    return psnr_y(img, img2, crop_border)


@METRIC_REGISTRY.register()
def calculate_ssim_y(img: np.ndarray, img2: np.ndarray, crop_border: int, **_: Any) -> float:
    """SSIM (11x11 Gaussian of sigma 1.5, valid region) of `img` against `img2`, as `calculate_psnr_y`."""
    return ssim_y(img, img2, crop_border)
