"""Bicubic resizing of a picture that arrives in bands of rows, for scales that a network does not have.

Pillow's resampler (bicubic, antialiased when it shrinks) works on a window of source rows. For each band of the result
exactly the rows within reach of its filter are kept. So the bands join as if the whole picture were resized at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

_SUPPORT = 2.0  # half width of the bicubic kernel at enlargement; it grows with the factor when shrinking
_BAND_ROWS = 256


def resample_bands(
    bands: Iterable[np.ndarray], *, source: tuple[int, int], target: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Resize float32 bands (rows, W, C) that make up a picture of `source` = (H, W) to `target` = (H', W').

    Yields float32 bands of the result from top to bottom. Values can leave the input's range (bicubic overshoots).
    """
    step = source[0] / target[0]
    reach = math.ceil(_SUPPORT * max(1.0, step)) + 1
    held, first, done = None, 0, 0  # rows held, number of the first one, result rows delivered
    for band in bands:
        held = band if held is None else np.concatenate([held, band])
        complete = first + len(held) == source[0]
        while done < target[0]:
            stop = min(target[0], done + _BAND_ROWS)
            if not complete and math.ceil(stop * step) + reach > first + len(held):
                break
            start_row = max(0, math.floor(done * step) - reach)
            stop_row = min(source[0], math.ceil(stop * step) + reach)
            window = held[start_row - first : stop_row - first]
            box = (0.0, done * step - start_row, float(source[1]), stop * step - start_row)
            yield _resized(window, (target[1], stop - done), box)
            done = stop
        drop = max(0, min(len(held), math.floor(done * step) - reach - first))
        held, first = held[drop:], first + drop


def _resized(window: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(window[:, :, c])).resize(size, Image.Resampling.BICUBIC, box=box)
        )
        for c in range(window.shape[2])
    ]
    return np.stack(planes, axis=2)
