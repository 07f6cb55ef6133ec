"""Writes an enlarged picture band by band as PNG, JPEG or WebP, with the metadata of the picture it came from.

PNG is streamed and keeps everything (alpha, 16 bits). JPEG and WebP encoders want the whole picture, so the bands are
pasted into one Pillow image, the only copy. What a format cannot hold is said in a note, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from bam_plugin.pictures.errors import PictureWriteError
from bam_plugin.pictures.png_stream import MAX_SIDE, PngStream
from bam_plugin.pictures.read import Picture, PictureInfo

OUTPUT_FORMATS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
"""File name endings that can be written, and their format."""

DEFAULT_QUALITY = 95
LONGEST_SIDE = {"png": MAX_SIDE, "jpg": 65535, "webp": 16383}
MAX_WEBP_PIXELS = 80_000_000
"""Larger results are not made WebP: its encoder takes the picture as a whole, and 1.3 GB for one of this size."""

# A pixel, measured. PNG is streamed, Pillow holds a colour pixel in 4 bytes; WebP takes 13 to 16, the more the noisier.
_ENCODER_BYTES = {"png": 0, "jpg": 4, "webp": 16}
_JPEG_SEGMENT = 65533  # bytes that one marker segment holds


class PictureWriter(Protocol):
    """Takes bands of rows from the top. Leaving the `with` block finishes the file, unless an error left it."""

    def __enter__(self) -> PictureWriter: ...

    def __exit__(self, kind, error, trace) -> None: ...

    def write(self, rows: np.ndarray) -> None:
        """Append (rows, width, channels)."""
        ...


@dataclass(frozen=True)
class Encoding:
    """How a picture will be stored: format, size (H, W, C) and data type, metadata, and what a person should know."""

    format: str
    shape: tuple[int, int, int]
    dtype: type
    icc_profile: bytes | None
    exif: bytes | None
    png_colour: Mapping[bytes, bytes]
    notes: tuple[str, ...]


def automatic_format(info: PictureInfo, *, width: int, height: int) -> str:
    """The format that suits an enlarged picture of `width` x `height`: JPEG and WebP stay what they are, else PNG.

    PNG also where the others cannot (alpha in a JPEG, more than 8 bits, a side beyond the format's longest), and for a
    WebP so large that its encoder would need more memory than all the rest.
    """
    name = {"JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}.get(info.format, "png")
    if info.deep or max(width, height) > LONGEST_SIDE[name] or (info.alpha and name == "jpg"):
        return "png"
    if name == "webp" and width * height > MAX_WEBP_PIXELS:
        return "png"
    return name


def format_of_name(path: Path) -> str:
    """The format that a file name asks for. Raises `PictureWriteError` for an ending that is not written here."""
    try:
        return OUTPUT_FORMATS[path.suffix.lower()]
    except KeyError:
        raise PictureWriteError(
            f"{path}: pictures are written as {', '.join(OUTPUT_FORMATS)}, found the ending {path.suffix!r}"
        ) from None


def plan_encoding(format: str, picture: Picture, *, width: int, height: int) -> Encoding:
    """Decide how `picture`, enlarged to `width` x `height`, is stored, and say what gets lost.

    Raises `PictureWriteError` when the format cannot hold that size.
    """
    channels, dtype = picture.pixels.shape[2], picture.pixels.dtype
    if max(width, height) > LONGEST_SIDE[format]:
        raise PictureWriteError(
            f"{format} holds at most {LONGEST_SIDE[format]} pixels a side, the result has {width} x {height}; "
            "write a png or use a smaller --scale"
        )
    if format == "webp" and width * height > MAX_WEBP_PIXELS:
        needed = encoder_bytes(format, width=width, height=height) / 1e9
        raise PictureWriteError(
            f"webp is written up to {MAX_WEBP_PIXELS / 1e6:g} megapixels, for its encoder takes the whole picture; the "
            f"result has {width} x {height} pixels and would need {needed:.1f} GB: write a png (streamed) or a jpg"
        )
    notes = []
    if format == "png":
        stored = np.uint8 if dtype == np.uint8 else np.uint16
        if dtype == np.float32:
            notes.append("float values are stored as 16-bit integers")
    else:
        stored = np.uint8
        if dtype != np.uint8:
            notes.append(f"{format} holds 8 bits: the result has 8 bits a channel")
        if format == "jpg" and channels in (2, 4):
            notes.append("jpg holds no transparency: the picture is laid on white")
    profile, exif = picture.icc_profile, picture.exif
    if profile and format == "webp" and channels < 3:
        profile = None
        notes.append("webp stores grey as RGB: the ICC profile for grey was left out")
    if exif and format == "jpg" and len(exif) > _JPEG_SEGMENT:
        exif = None
        notes.append("the EXIF block is too large for a jpg and was left out")
    return Encoding(
        format=format,
        shape=(height, width, channels),
        dtype=stored,
        icc_profile=profile,
        exif=exif,
        png_colour=picture.png_colour,
        notes=tuple(notes),
    )


def encoder_bytes(format: str, *, width: int, height: int) -> int:
    """Bytes that the writer of a picture of this size needs: nearly none for a PNG."""
    return _ENCODER_BYTES[format] * width * height


def open_writer(path: Path, encoding: Encoding, *, quality: int = DEFAULT_QUALITY) -> PictureWriter:
    """Start the file `path`; `quality` 1..100 is for jpg and webp."""
    if encoding.format == "png":
        return _PngFile(path=path, encoding=encoding)
    return _PillowFile(path=path, encoding=encoding, quality=quality)


class _PngFile:
    def __init__(self, *, path: Path, encoding: Encoding):
        height, width, channels = encoding.shape
        self._file = path.open("wb")
        self._png = PngStream(
            stream=self._file,
            width=width,
            height=height,
            channels=channels,
            dtype=encoding.dtype,
            icc_profile=encoding.icc_profile,
            exif=encoding.exif,
            colour=encoding.png_colour,
        )

    def __enter__(self) -> _PngFile:
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._file:
            if kind is None:
                self._png.close()

    def write(self, rows: np.ndarray) -> None:
        self._png.write(rows)


class _PillowFile:
    def __init__(self, *, path: Path, encoding: Encoding, quality: int):
        self._path, self._encoding, self._quality = path, encoding, quality
        height, width, channels = encoding.shape
        if encoding.format == "webp":
            mode = "RGBA" if channels in (2, 4) else "RGB"
        else:
            mode = "L" if channels < 3 else "RGB"
        self._image = Image.new(mode, (width, height))
        self._row = 0

    def __enter__(self) -> _PillowFile:
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._image:
            if kind is None:
                self._save()

    def write(self, rows: np.ndarray) -> None:
        band = Image.fromarray(rows[:, :, 0] if rows.shape[2] == 1 else rows)
        if self._image.mode in ("L", "RGB") and band.mode in ("LA", "RGBA"):
            background = Image.new("RGBA", band.size, "white")
            band = Image.alpha_composite(background, band.convert("RGBA"))
        self._image.paste(band if band.mode == self._image.mode else band.convert(self._image.mode), (0, self._row))
        self._row += len(rows)

    def _save(self) -> None:
        options: dict = {"quality": self._quality, "icc_profile": self._encoding.icc_profile}
        if self._encoding.exif:
            options["exif"] = self._encoding.exif
        if self._encoding.format == "jpg":
            # The colour planes keep their resolution: it has just been computed.
            options["subsampling"] = "4:4:4"
        self._image.save(self._path, {"jpg": "JPEG", "webp": "WEBP"}[self._encoding.format], **options)
