"""Parts of a picture that did not change since the picture before are not computed again; the result is the same.

A network of receptive radius r computes a pixel of the result from pixels at most r away. So the picture is cut into
tiles, and a tile is computed again where something within r of it changed. All windows have one size, cut to lie inside
the picture, so that the engine prepares its buffers once. Where most tiles changed, the whole picture is computed: that
costs less than windows with overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class PictureUpscaler(Protocol):
    """What is asked of an `Upscaler` here."""

    scale: int
    receptive_radius: int | None

    def upscale(self, image: np.ndarray, *, scale: float | None = None, tile: int | None = None) -> np.ndarray:
        """Enlarge a picture."""
        ...


TILE = 64
"""Edge of a tile in input pixels."""

_WORTH = 0.75  # of the whole picture's pixels: windows of more than that are no gain


@dataclass(kw_only=True)
class FrameUpscaler:
    """Upscales one picture after the other, (H, W, C) each, and counts what it did not need to compute."""

    upscaler: PictureUpscaler
    scale: float | None = None
    tile: int | None = None
    """Edge of the upscaler's tiles, for pictures that do not fit the memory as a whole."""
    computed_pixels: int = 0
    total_pixels: int = 0
    _before: np.ndarray | None = field(default=None, repr=False)
    _result: np.ndarray | None = field(default=None, repr=False)

    def upscale(self, pixels: np.ndarray) -> np.ndarray:
        """The enlarged picture; equal to `Upscaler.upscale(pixels)`. The array is not changed by later calls."""
        height, width, _ = pixels.shape
        self.total_pixels += height * width
        windows = self._windows(pixels)
        if windows is None:
            result = self.upscaler.upscale(pixels, scale=self.scale, tile=self.tile)
            self.computed_pixels += height * width
        else:
            assert self._result is not None
            result = self._result.copy() if windows else self._result
            for window, core in windows:
                _paste(result, self.upscaler.upscale(pixels[window], tile=0), window, core, self.upscaler.scale)
                self.computed_pixels += (window[0].stop - window[0].start) * (window[1].stop - window[1].start)
        self._before, self._result = pixels, result
        return result

    def _windows(self, pixels: np.ndarray) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]] | None:
        """(window, core) of each tile to compute, as slices of the picture; None to compute all of it at once."""
        before, radius = self._before, self.upscaler.receptive_radius
        own = self.scale is None or self.scale == self.upscaler.scale
        if before is None or before.shape != pixels.shape or radius is None or not own or pixels.shape[2] not in (1, 3):
            return None
        changed = (before != pixels).any(axis=2)
        rows, columns = (_spans(length, radius) for length in changed.shape)
        windows = [
            (tuple(slice(*span[:2]) for span in (row, column)), tuple(slice(*span[2:]) for span in (row, column)))
            for row in rows
            for column in columns
            if changed[row[0] : row[1], column[0] : column[1]].any()
        ]
        cost = len(windows) * (rows[0][1] - rows[0][0]) * (columns[0][1] - columns[0][0])
        return None if cost > _WORTH * changed.size else windows  # type: ignore[return-value]


def _spans(length: int, radius: int) -> list[tuple[int, int, int, int]]:
    """(window start, window stop, core start, core stop) along one axis: cores join, windows have one length."""
    window = min(length, TILE + 2 * radius)
    spans = []
    for start in range(0, length, TILE):
        stop = min(length, start + TILE)
        first = max(0, min(start - radius, length - window))
        spans.append((first, first + window, start, stop))
    return spans


def _paste(
    result: np.ndarray, tile: np.ndarray, window: tuple[slice, slice], core: tuple[slice, slice], scale: int
) -> None:
    """Copy the core's part of an enlarged window into the enlarged picture."""
    target = tuple(slice(each.start * scale, each.stop * scale) for each in core)
    source = tuple(
        slice((each.start - whole.start) * scale, (each.stop - whole.start) * scale)
        for each, whole in zip(core, window, strict=True)
    )
    result[target] = tile[source]
