"""PSNR and SSIM as the literature measures super-resolution, in NumPy.

Y of YCbCr (BT.601) is rounded to 8 bits, as MATLAB's rgb2ycbcr does for 8-bit images. BasicSR's own `test_y_channel`
does not round it, which lifts bicubic on Set5 x2 by 0.03 dB. A single-channel target is a grey image. Then the luma of
the result is measured in the grey range (0..255) and not in that of Y (16..235), where the same error is 1.32 dB
smaller.
"""

from __future__ import annotations

import numpy as np

from bam_plugin.errors import BamError
from bam_plugin.pictures.opencv import cv2

# BT.601 for B, G, R in 0..255: Y = 16 + weights . BGR / 255.
_BT601 = np.array([24.966, 128.553, 65.481])
_WINDOW = 11  # pixels; the Gaussian window of SSIM
_SIGMA = 1.5


class MeasureError(BamError):
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


def psnr_y(result: np.ndarray, target: np.ndarray, crop_border: int) -> float:
    """PSNR in dB of the Y of `result` against that of `target`; infinite if they are equal.

    Both are uint8 BGR (H, W, 3) or grey (H, W), of one size. `crop_border` pixels of each edge are left out. Raises
    MeasureError.
    """
    one, other = _comparable(result, target, crop_border)
    mse = np.mean((one - other) ** 2)
    return float("inf") if mse == 0 else float(10.0 * np.log10(255.0 * 255.0 / mse))


def ssim_y(result: np.ndarray, target: np.ndarray, crop_border: int) -> float:
    """SSIM in [-1, 1] of the Y of `result` against that of `target`; arguments and errors as in `psnr_y`.

    Wang et al., Image quality assessment: from error visibility to structural similarity, TIP 2004, equation 13: local
    means, variances and covariance under a Gaussian window, averaged over the pixels whose window is inside the image.
    """
    one, other = _comparable(result, target, crop_border)
    if min(one.shape) < _WINDOW:
        raise MeasureError(f"SSIM needs {_WINDOW} pixels a side after the crop of {crop_border}, found {one.shape}.")
    mean_1, mean_2 = _local_mean(one), _local_mean(other)
    variance_1 = _local_mean(one**2) - mean_1**2
    variance_2 = _local_mean(other**2) - mean_2**2
    covariance = _local_mean(one * other) - mean_1 * mean_2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return float((similar / ((mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2))).mean())


def _comparable(result: np.ndarray, target: np.ndarray, crop_border: int) -> tuple[np.ndarray, np.ndarray]:
    """The channels (H, W) of a result and its target that the literature compares, as float64."""
    if result.shape[:2] != target.shape[:2]:
        raise MeasureError(
            f"expected result and target of one size, found {result.shape[:2]} and {target.shape[:2]}: "
            "crop the target to a multiple of the scale."
        )
    if min(result.shape[:2]) <= 2 * crop_border:
        raise MeasureError(f"an image of {result.shape[:2]} has no pixel left after the crop of {crop_border}.")
    grey = target.ndim == 2 or target.shape[2] == 1
    inner = slice(crop_border, -crop_border or None)
    one, other = (luma(image, full_range=grey)[inner, inner, 0].astype(np.float64) for image in (result, target))
    return one, other


def _local_mean(values: np.ndarray) -> np.ndarray:
    """Means under the window, of the pixels whose window is inside the image."""
    kernel = cv2.getGaussianKernel(_WINDOW, _SIGMA)
    margin = _WINDOW // 2
    return cv2.filter2D(values, -1, np.outer(kernel, kernel.T))[margin:-margin, margin:-margin]
