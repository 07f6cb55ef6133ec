"""PSNR and SSIM as the literature measures super-resolution, registered in BasicSR's METRIC_REGISTRY.

Y of YCbCr (BT.601) is rounded to 8 bits, as MATLAB's rgb2ycbcr does for 8-bit images. BasicSR's own `test_y_channel`
does not round it, which lifts bicubic on Set5 x2 by 0.03 dB. A single-channel target is a grey image. Then the luma of
the result is measured in the grey range (0..255) and not in that of Y (16..235), where the same error is 1.32 dB
smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils.registry import METRIC_REGISTRY

from bam_plugin.errors import BamError

# BT.601 for B, G, R in 0..255: Y = 16 + weights . BGR / 255.
_BT601 = np.array([24.966, 128.553, 65.481])


class MetricError(BamError):
    """A result and its target do not fit together."""


def luma(image: np.ndarray, *, full_range: bool = False) -> np.ndarray:
    """(H, W, 1) uint8 Y (16..235) of a BGR uint8 image, or grey values (0..255) if `full_range`.

    A single-channel image is its own grey. For its Y it counts as three equal channels.
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        grey = image.astype(np.float64)
        y = grey if full_range else 16 + grey * (_BT601.sum() / 255)
    else:
        y = image.astype(np.float64) @ (_BT601 / 255)
        y = y * (255 / _BT601.sum()) if full_range else y + 16
    return np.floor(y + 0.5).clip(0, 255).astype(np.uint8)[..., None]


def comparable_luma(img: np.ndarray, img2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The channels (H, W, 1) of a result and its target that the literature compares, as the module describes it."""
    if img.shape[:2] != img2.shape[:2]:
        raise MetricError(
            f"expected result and target of one size, found {img.shape[:2]} and {img2.shape[:2]}: "
            "crop the target to a multiple of the scale."
        )
    grey = img2.ndim == 2 or img2.shape[2] == 1
    return luma(img, full_range=grey), luma(img2, full_range=grey)


@METRIC_REGISTRY.register()
def calculate_psnr_y(img: np.ndarray, img2: np.ndarray, crop_border: int, **_: Any) -> float:
    """PSNR in dB of result `img` against target `img2`, uint8 BGR (H, W, 3) or grey (H, W), borders cropped."""
    return float(calculate_psnr(*comparable_luma(img, img2), crop_border=crop_border))


@METRIC_REGISTRY.register()
def calculate_ssim_y(img: np.ndarray, img2: np.ndarray, crop_border: int, **_: Any) -> float:
    """SSIM (11x11 Gaussian of sigma 1.5, valid region) of `img` against `img2`, as `calculate_psnr_y`."""
    return float(calculate_ssim(*comparable_luma(img, img2), crop_border=crop_border))
