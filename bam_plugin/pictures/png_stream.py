"""Write a PNG row by row, without the whole picture in memory.

Libraries encode a PNG from one array. A 12-megapixel photo, enlarged four times, has 576 MB of pixels, and this writer
never needs them at once. Each row is stored with the PNG filter that leaves the smallest sum of absolute differences
(the heuristic of the PNG specification, section 12.8), computed for a strip of rows at a time.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_STRIP_BYTES = 1 << 18  # of raw pixels filtered at a time; the temporaries are a few times this


class PngStream:
    """Writes a PNG of known size to `stream`; feed rows from the top with `write`, then `close`."""

    def __init__(
        self,
        *,
        stream: BinaryIO,
        width: int,
        height: int,
        channels: int,
        dtype: np.dtype | type,
        icc_profile: bytes | None = None,
        exif: bytes | None = None,
        colour: Mapping[bytes, bytes] | None = None,
        level: int = 4,
    ):
        """`channels` 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; `dtype` uint8 or uint16.

        `exif` is a TIFF block with or without its "Exif" prefix, `colour` holds ready gAMA, cHRM and sRGB chunks,
        `level` is that of zlib (4 is three times as fast as 6 on enlarged photos, for 6 % more bytes).
        """
        dtype = np.dtype(dtype)
        if dtype not in (np.uint8, np.uint16) or channels not in _COLOUR_TYPES:
            raise ValueError(f"PNG stores 1 to 4 channels of uint8 or uint16, asked for {channels} of {dtype}")
        self._stream = stream
        self._shape = (width, channels)
        self._dtype = dtype
        self._rows_left = height
        self._pixel_bytes = channels * dtype.itemsize
        self._previous = np.zeros((1, width * self._pixel_bytes), np.uint8)
        self._deflate = zlib.compressobj(level)
        stream.write(SIGNATURE)
        header = struct.pack(">IIBBBBB", width, height, dtype.itemsize * 8, _COLOUR_TYPES[channels], 0, 0, 0)
        self._chunk(b"IHDR", header)
        if icc_profile:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))
        else:
            for name, data in (colour or {}).items():
                self._chunk(name, data)
        if exif:
            self._chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))

    def write(self, rows: np.ndarray) -> None:
        """Append rows: an array (rows, width, channels) of the dtype announced."""
        if rows.shape[1:] != self._shape or rows.dtype != self._dtype or len(rows) > self._rows_left:
            raise ValueError(
                f"expected up to {self._rows_left} rows of {self._shape} {self._dtype}, got {rows.shape} {rows.dtype}"
            )
        self._rows_left -= len(rows)
        strip = max(1, _STRIP_BYTES // self._previous.size)
        for start in range(0, len(rows), strip):
            part = np.ascontiguousarray(rows[start : start + strip], self._dtype.newbyteorder(">"))
            raw = part.view(np.uint8).reshape(len(part), -1)
            filtered = filter_rows(raw, self._previous, self._pixel_bytes)
            self._previous = raw[-1:].copy()
            # zlib reads the buffer of the array, so nothing is copied to bytes.
            self._idat(self._deflate.compress(filtered.data))

    def close(self) -> None:
        """Finish the file. Raises ValueError if rows are missing. The stream itself stays open."""
        if self._rows_left:
            raise ValueError(f"{self._rows_left} rows are missing")
        self._idat(self._deflate.flush())
        self._chunk(b"IEND", b"")

    def _idat(self, data: bytes) -> None:
        if data:
            self._chunk(b"IDAT", data)

    def _chunk(self, name: bytes, data: bytes) -> None:
        checksum = zlib.crc32(data, zlib.crc32(name))
        self._stream.write(struct.pack(">I", len(data)) + name)
        self._stream.write(data)
        self._stream.write(struct.pack(">I", checksum))


def filter_rows(raw: np.ndarray, previous: np.ndarray, pixel_bytes: int) -> np.ndarray:
    """Filter rows of bytes (R, B) below the row `previous` (1, B): (R, 1 + B), each row led by its filter's number."""
    above = np.concatenate([previous, raw[:-1]])
    left = np.zeros_like(raw)
    left[:, pixel_bytes:] = raw[:, :-pixel_bytes]
    above_left = np.zeros_like(raw)
    above_left[:, pixel_bytes:] = above[:, :-pixel_bytes]
    candidates = [raw, raw - left, raw - above, raw - _mean(left, above), raw - _paeth(left, above, above_left)]
    # Bytes are differences modulo 256: 255 is -1, so the size of a difference is min(d, 256 - d).
    costs = np.stack([np.minimum(c, -c).sum(axis=1, dtype=np.int64) for c in candidates])
    best = costs.argmin(axis=0)
    filtered = np.empty((raw.shape[0], raw.shape[1] + 1), np.uint8)
    filtered[:, 0] = best
    for number, candidate in enumerate(candidates):
        rows = best == number
        filtered[rows, 1:] = candidate[rows]
    return filtered


def _mean(left: np.ndarray, above: np.ndarray) -> np.ndarray:
    """floor((left + above) / 2) in bytes without overflow."""
    return (left & above) + ((left ^ above) >> 1)


def _paeth(left: np.ndarray, above: np.ndarray, above_left: np.ndarray) -> np.ndarray:
    """The one of the three neighbours that is nearest to left + above - above_left (PNG specification, section 9.4)."""
    a, b, c = left.astype(np.int16), above.astype(np.int16), above_left.astype(np.int16)
    to_left, to_above = b - c, a - c
    to_corner = np.abs(to_left + to_above)
    to_left, to_above = np.abs(to_left), np.abs(to_above)
    nearest = np.where(to_above <= to_corner, above, above_left)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
