"""Picture files for the tests of reading and writing, made to the byte where that matters."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ImageCms

from bam_plugin.pictures.formats import FORMATS, PNG
from bam_plugin.pictures.read import Picture
from bam_plugin.pictures.write import open_writer, plan_encoding

RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def random_pixels(height: int = 13, width: int = 17, dtype=np.uint8, channels: int = 3) -> np.ndarray:
    """(height, width, channels) over the whole range of `dtype`, the same for the same arguments."""
    top = np.iinfo(dtype).max
    return np.random.default_rng(1).integers(0, top, (height, width, channels), dtype, endpoint=True)


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its length and check sum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(path: Path, pixels: np.ndarray, colour_type: int, *chunks: bytes) -> Path:
    """A PNG with exactly the colour type and chunks given, filter 0."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    body = zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour_type, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", body), png_chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def plain_picture(pixels: np.ndarray) -> Picture:
    """A picture without anything but pixels."""
    return Picture(pixels=pixels, format=PNG)


def write_pixels(path: Path, format: str, pixels: np.ndarray, picture: Picture) -> None:
    """Write `pixels`, with what belongs to `picture`, in two pieces."""
    height, width, _ = pixels.shape
    with open_writer(path, plan_encoding(FORMATS[format], picture, width=width, height=height)) as writer:
        writer.write(pixels[: height // 2])
        writer.write(pixels[height // 2 :])
