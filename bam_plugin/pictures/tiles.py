"""Tiles: run a network over a picture of any size in bounded memory, window by window.

A network of receptive radius r computes an output pixel from the low-resolution pixels at most r away. So a tile has a
*core*, which it contributes, and a *window*, which is r larger on each side. The window is cut at the border of the
picture, where the network pads as in the whole picture. Joined cores equal the untiled result. This does not hold for a
network that sees the whole picture (global or window attention, radius None), so its tiles are blended over their
overlap.

Rows of tiles make *bands*. Only one band is in memory at a time, so a writer can encode it and forget it.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BLEND_OVERLAP = 16
"""Input pixels that windows of a network without finite radius reach over a seam; the inner half of them is mixed."""

SMALLEST_CORE = 16
"""With a core below this edge nearly all computed pixels overlap. So memory budgets are exceeded instead."""

Render = Callable[[int, int, int, int], np.ndarray]
"""(top, bottom, left, right) in low-resolution pixels -> (rows * scale, columns * scale, C) float32."""


@dataclass(frozen=True)
class Tiling:
    """The cuts of a picture of `rows[-1]` x `columns[-1]` low-resolution pixels, and the reach of windows over them.

    `rows` and `columns` are the cut positions, 0 and the size included; `overlap` is in low-resolution pixels;
    `blended` says that neighbours are mixed instead of joined.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    overlap: int
    blended: bool

    @property
    def count(self) -> int:
        """Number of tiles."""
        return (len(self.rows) - 1) * (len(self.columns) - 1)

    @property
    def largest_window(self) -> int:
        """Low-resolution pixels of the largest window, overlaps counted."""
        return max(_window_lengths(self.rows, self.overlap)) * max(_window_lengths(self.columns, self.overlap))

    @property
    def computed_pixels(self) -> int:
        """Low-resolution pixels computed, overlaps counted each time."""
        return sum(_window_lengths(self.rows, self.overlap)) * sum(_window_lengths(self.columns, self.overlap))


def plan_tiles(height: int, width: int, *, tile: int, radius: int | None) -> Tiling:
    """Cut a picture into equal cores of at most `tile` pixels an edge; `tile` 0 means one tile for all.

    `radius` is the network's receptive radius in low-resolution pixels, None for one without finite radius.
    """
    if not tile or (tile >= height and tile >= width):
        return Tiling((0, height), (0, width), overlap=0, blended=False)
    return _tiling(height, width, tile, tile, radius)


def plan_for_memory(
    height: int, width: int, *, radius: int | None, pixel_budget: int, row_budget: int | None = None
) -> Tiling:
    """Choose the cheapest tiling whose windows hold at most `pixel_budget` low-resolution pixels each.

    Cost is the number of pixels computed, overlaps included. `row_budget` limits the rows of a band. A budget that is
    too small for the overlap is exceeded by as little as a core of `SMALLEST_CORE` pixels allows.
    """
    row_budget = max(row_budget or height, SMALLEST_CORE)
    if height * width <= pixel_budget and height <= row_budget:
        return plan_tiles(height, width, tile=0, radius=radius)
    overlap = BLEND_OVERLAP if radius is None else radius
    best: Tiling | None = None
    for columns in range(1, math.ceil(width / SMALLEST_CORE) + 1):
        core_width = math.ceil(width / columns)
        window_width = min(width, core_width + 2 * overlap)
        core_height = min(row_budget, pixel_budget // window_width - 2 * overlap)
        if core_height < SMALLEST_CORE:
            continue
        tiling = _tiling(height, width, core_height, core_width, radius)
        # Blended cores have a least size of their own and may come out larger than asked for.
        if tiling.largest_window > pixel_budget:
            continue
        if best is None or tiling.computed_pixels < best.computed_pixels:
            best = tiling
    return best or _tiling(height, width, SMALLEST_CORE, SMALLEST_CORE, radius)


def render_bands(
    render: Render, tiling: Tiling, *, scale: int, channels: int, finish: Callable[[np.ndarray], np.ndarray], dtype
) -> Iterator[np.ndarray]:
    """Yield the enlarged picture from top to bottom as bands of (rows, width * scale, channels), dtype `dtype`.

    `finish` turns float32 pixels into `dtype` (clipping, rounding). It runs tile by tile if tiles are joined, so
    that no band is in memory as float. If tiles are blended, it runs after the mixing.
    """
    if tiling.blended:
        yield from _blended_bands(render, tiling, scale, channels, finish)
    else:
        yield from _joined_bands(render, tiling, scale, channels, finish, dtype)


def available_memory() -> int | None:
    """Bytes of memory that can be used without swapping, or None if the system does not say.

    It is the tightest of the machine's free memory and this control group's limit (containers).
    """
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        found.append(max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))))
    except (OSError, ValueError):
        pass
    if not found:
        try:
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, OSError, ValueError):
            return None
    return min(found)


def _tiling(height: int, width: int, core_height: int, core_width: int, radius: int | None) -> Tiling:
    if radius is not None:
        return Tiling(_cuts(height, core_height), _cuts(width, core_width), overlap=radius, blended=False)
    # A core as long as both its seams keeps a pixel from being mixed out of more than two neighbours.
    least = 2 * BLEND_OVERLAP
    rows = _cuts(height, max(core_height, least), least)
    columns = _cuts(width, max(core_width, least), least)
    return Tiling(rows, columns, overlap=BLEND_OVERLAP, blended=len(rows) > 2 or len(columns) > 2)


def _cuts(length: int, core: int, least: int = 1) -> tuple[int, ...]:
    """Cut `length` into equal parts of at most `core`, unless that makes them shorter than `least`."""
    parts = max(1, min(math.ceil(length / core), length // least))
    return tuple(length * index // parts for index in range(parts + 1))


def _window_lengths(cuts: tuple[int, ...], overlap: int) -> list[int]:
    return [min(cuts[-1], b + overlap) - max(0, a - overlap) for a, b in itertools.pairwise(cuts)]


def _joined_bands(render, tiling, scale, channels, finish, dtype) -> Iterator[np.ndarray]:
    height, width, overlap = tiling.rows[-1], tiling.columns[-1], tiling.overlap
    for top, bottom in itertools.pairwise(tiling.rows):
        band = np.empty(((bottom - top) * scale, width * scale, channels), dtype)
        window_top, window_bottom = max(0, top - overlap), min(height, bottom + overlap)
        for left, right in itertools.pairwise(tiling.columns):
            window_left, window_right = max(0, left - overlap), min(width, right + overlap)
            tile = render(window_top, window_bottom, window_left, window_right)
            y, x = (top - window_top) * scale, (left - window_left) * scale
            core = tile[y : y + (bottom - top) * scale, x : x + (right - left) * scale]
            band[:, left * scale : right * scale] = finish(core)
        yield band


def _blended_bands(render, tiling, scale, channels, finish) -> Iterator[np.ndarray]:
    height, width, overlap = tiling.rows[-1], tiling.columns[-1], tiling.overlap
    carried = np.zeros((0, width * scale, channels), np.float32)
    for top, bottom in itertools.pairwise(tiling.rows):
        window_top, window_bottom = max(0, top - overlap), min(height, bottom + overlap)
        band = np.zeros(((window_bottom - window_top) * scale, width * scale, channels), np.float32)
        band[: len(carried)] = carried
        down = _ramp(top, bottom, height, overlap, scale)[:, None, None]
        for left, right in itertools.pairwise(tiling.columns):
            window_left, window_right = max(0, left - overlap), min(width, right + overlap)
            tile = render(window_top, window_bottom, window_left, window_right)
            across = _ramp(left, right, width, overlap, scale)[None, :, None]
            band[:, window_left * scale : window_right * scale] += tile * (down * across)
        # Rows that the next band of tiles still adds to stay here.
        complete = len(band) if bottom == height else len(band) - 2 * overlap * scale
        carried = band[complete:]
        yield finish(band[:complete])


def _ramp(start: int, stop: int, length: int, overlap: int, scale: int) -> np.ndarray:
    """Weights of a tile along one axis of its window: rising and falling lines that sum to 1 with the neighbours'.

    They cross at the seam and are 0 in the outer half of the overlap, where a window suffers most from its border.
    """
    position = (np.arange(max(0, start - overlap) * scale, min(length, stop + overlap) * scale) + 0.5) / scale
    weights = np.ones(len(position), np.float32)
    if start > 0:
        weights *= np.clip((position - start) / overlap + 0.5, 0, 1).astype(np.float32)
    if stop < length:
        weights *= np.clip((stop - position) / overlap + 0.5, 0, 1).astype(np.float32)
    return weights
