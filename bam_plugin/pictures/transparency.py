"""Transparency without halos: colours under clear pixels, and an alpha channel that keeps its flat parts flat.

A file's colour under fully transparent pixels is arbitrary, often black, and a network would draw it into the visible
edge. So the colours around it replace it before upscaling. Then straight (not premultiplied) colour has a meaning
everywhere, and nothing is divided by a small alpha. Alpha itself goes through the network as a grey picture. Then it is
limited to the values around each pixel, so that opaque and clear areas stay exactly as they are.
"""

from __future__ import annotations

import numpy as np

from bam_plugin.pictures.opencv import cv2

NEIGHBOURHOOD = 2
"""Low-resolution pixels around a pixel whose alpha values limit the enlarged alpha (the reach of bicubic)."""


def fill_transparent(pixels: np.ndarray) -> np.ndarray:
    """Return the picture with the colour of fully transparent pixels taken from the visible ones around them.

    (H, W, 2 or 4), alpha last, any picture dtype; alpha and the colour of visible pixels are unchanged. Push-pull
    (Gortler et al. 1996): averages weighted by alpha are pushed to ever coarser grids and pulled back into the holes.
    """
    clear = pixels[:, :, -1] == 0
    if not clear.any() or clear.all():
        return pixels
    colour, weight = pixels[:, :, :-1].astype(np.float32), pixels[:, :, -1].astype(np.float32)
    filled = pixels.copy()
    filled[:, :, :-1][clear] = _pulled(colour, weight)[clear].astype(pixels.dtype)
    return filled


def clamp_alpha(enlarged: np.ndarray, alpha: np.ndarray, scale: int) -> np.ndarray:
    """Limit an enlarged alpha map (H * scale, W * scale) to the range of the `alpha` (H, W) around each pixel."""
    kernel = np.ones((2 * NEIGHBOURHOOD + 1,) * 2, np.uint8)
    low, high = cv2.erode(alpha, kernel), cv2.dilate(alpha, kernel)
    return np.clip(enlarged, _repeat(low, scale), _repeat(high, scale))


def _repeat(values: np.ndarray, scale: int) -> np.ndarray:
    return values.repeat(scale, axis=0).repeat(scale, axis=1)


def _pulled(colour: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colour (H, W, C) float32 with pixels of weight 0 filled from coarser averages of the others."""
    height, width = weight.shape
    known = weight > 0
    if (height == 1 and width == 1) or known.all():
        return colour
    odd = ((0, height % 2), (0, width % 2))
    sums = np.pad(colour * weight[:, :, None], (*odd, (0, 0)))
    weights = np.pad(weight, odd)
    sums = sums.reshape(sums.shape[0] // 2, 2, sums.shape[1] // 2, 2, -1).sum(axis=(1, 3))
    weights = weights.reshape(weights.shape[0] // 2, 2, weights.shape[1] // 2, 2).sum(axis=(1, 3))
    coarse = _pulled(sums / np.where(weights > 0, weights, 1)[:, :, None], weights)
    size = (2 * coarse.shape[1], 2 * coarse.shape[0])
    smooth = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)[:height, :width].reshape(colour.shape)
    return np.where(known[:, :, None], colour, smooth)
