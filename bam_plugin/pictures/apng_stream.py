"""Write an animated PNG frame by frame, without the whole animation in memory.

The frames are whole pictures of the canvas, each replacing the one before (APNG specification: blend SOURCE, dispose
NONE), so transparency needs no care. A reader that knows no APNG shows the first frame.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from bam_plugin.pictures.png_stream import PngStream


class ApngStream(PngStream):
    """Writes `frames` pictures of one size; feed each to `add`, then `close`. Other arguments: see `PngStream`."""

    def __init__(self, *, frames: int, plays: int, **png: Any):
        """`plays`: how often the animation runs, 0 for ever."""
        super().__init__(**png)
        self._height, self._level = png["height"], png.get("level", 4)
        self._frames_left, self._sequence, self._first = frames, 0, True
        self._chunk(b"acTL", struct.pack(">II", frames, plays))

    def add(self, pixels: np.ndarray, *, milliseconds: float) -> None:
        """Append a frame (height, width, channels) and its duration."""
        if not self._frames_left or len(pixels) != self._height:
            raise ValueError(f"expected {self._frames_left} more frames of {self._height} rows, got {len(pixels)} rows")
        self._frames_left -= 1
        # A 16-bit numerator; thousandths where they fit.
        unit = 1000 if milliseconds <= 65535 else 10
        delay = min(65535, round(milliseconds * unit / 1000))
        control = struct.pack(">IIIIHHBB", self._shape[0], self._height, 0, 0, delay, unit, 0, 0)
        self._chunk(b"fcTL", self._numbered() + control)
        self._deflate, self._rows_left = zlib.compressobj(self._level), self._height
        self._previous = np.zeros_like(self._previous)
        self.write(pixels)
        self._idat(self._deflate.flush())
        self._first = False

    def close(self) -> None:
        """Finish the file. Raises ValueError if frames are missing. The stream itself stays open."""
        if self._frames_left:
            raise ValueError(f"{self._frames_left} frames are missing")
        self._chunk(b"IEND", b"")

    def _numbered(self) -> bytes:
        self._sequence += 1
        return struct.pack(">I", self._sequence - 1)

    def _idat(self, data: bytes) -> None:
        if self._first:
            super()._idat(data)
        elif data:
            self._chunk(b"fdAT", self._numbered() + data)
