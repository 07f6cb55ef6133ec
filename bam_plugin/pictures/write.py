"""Write an enlarged picture band by band in the formats that have an encoder, with the metadata of its source.

PNG is streamed and keeps everything (alpha, 16 bits). The other encoders need the whole picture, so the bands are
pasted into one Pillow image, the only copy. A note says what a format cannot hold. Nothing is dropped silently.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from bam_plugin.pictures.errors import PictureWriteError
from bam_plugin.pictures.formats import PNG, Encoder, PictureFormat, written_endings, written_formats
from bam_plugin.pictures.png_stream import PngStream
from bam_plugin.pictures.read import Picture, PictureInfo

DEFAULT_QUALITY = 95

_HALF = 128  # alpha from which on a pixel is opaque where a format knows no half transparent parts
_CLEAR = 255  # the palette entry of clear pixels
_SAMPLE = 16_000  # pixels that the colours of a palette are chosen by


class PictureWriter(Protocol):
    """Takes bands of rows from the top. Leaving the `with` block finishes the file, unless an error left it."""

    def __enter__(self) -> PictureWriter: ...

    def __exit__(self, kind, error, trace) -> None: ...

    def write(self, rows: np.ndarray) -> None:
        """Append (rows, width, channels)."""
        ...


@dataclass(frozen=True)
class PictureEncoding:
    """How a picture is stored: format, size (H, W, C), data type, metadata, and notes for a person."""

    format: PictureFormat
    shape: tuple[int, int, int]
    dtype: type
    icc_profile: bytes | None
    exif: bytes | None
    png_colour: Mapping[bytes, bytes]
    notes: tuple[str, ...]

    @property
    def encoder(self) -> Encoder:
        """The record of the format's encoder."""
        return encoder_of(self.format)


def automatic_format(info: PictureInfo, *, width: int, height: int) -> PictureFormat:
    """The format that suits an enlarged picture of `width` x `height`: its own if it has an encoder, else PNG.

    It is PNG, too, if its own cannot hold the picture: alpha in a JPEG, more than 8 bits, a side beyond the format's
    longest, more pixels than its encoder gets.
    """
    format = written_formats().get(info.format.name, PNG)
    encoder = encoder_of(format)
    if not encoder.stills and info.frames == 1:
        return PNG
    lost = (info.deep and not encoder.deep) or (info.alpha and not encoder.alpha)
    return PNG if lost or _too_large(encoder, width, height) else format


def format_named(name: str) -> PictureFormat:
    """The format `name` that results are written in. Raises `PictureWriteError` for another one."""
    try:
        return written_formats()[name]
    except KeyError:
        raise PictureWriteError(
            f"the format {name!r} cannot be written; expected one of {', '.join(written_formats())}"
        ) from None


def format_of_name(path: Path) -> PictureFormat:
    """The format that a file name asks for. Raises `PictureWriteError` for an ending that is not written here."""
    try:
        return written_endings()[path.suffix.lower()]
    except KeyError:
        raise PictureWriteError(
            f"{path}: pictures are written as {', '.join(written_endings())}, found the ending {path.suffix!r}"
        ) from None


def plan_encoding(format: PictureFormat, picture: Picture, *, width: int, height: int) -> PictureEncoding:
    """Decide how `picture`, enlarged to `width` x `height`, is stored, and say what gets lost.

    Raises `PictureWriteError` if the format cannot hold that size.
    """
    encoder, name = encoder_of(format), format.name
    channels, dtype = picture.pixels.shape[2], picture.pixels.dtype
    check_size(format, width=width, height=height)
    notes = []
    stored = np.uint16 if encoder.deep and dtype != np.uint8 else np.uint8
    if not encoder.deep and dtype != np.uint8:
        notes.append(f"{name} holds 8 bits: the result has 8 bits a channel")
    elif dtype == np.float32:
        notes.append("float values are stored as 16-bit integers")
    if not encoder.alpha and channels in (2, 4):
        notes.append(f"{name} holds no transparency: the picture is laid on white")
    if encoder.palette:
        notes.append(f"{name} holds 256 colours, and no half transparent parts")
    profile, exif = picture.icc_profile, picture.exif
    if profile and not encoder.grey and channels < 3:
        profile = None
        notes.append(f"{name} stores grey as RGB: the ICC profile for grey was left out")
    if exif and encoder.most_exif is not None and len(exif) > encoder.most_exif:
        exif = None
        notes.append(f"the EXIF block is too large for a {name} and was left out")
    return PictureEncoding(
        format=format,
        shape=(height, width, channels),
        dtype=stored,
        icc_profile=profile,
        exif=exif,
        png_colour=picture.png_colour,
        notes=tuple(notes),
    )


def check_size(format: PictureFormat, *, width: int, height: int) -> None:
    """Raise `PictureWriteError` if the format cannot hold a picture of that size."""
    encoder, name = encoder_of(format), format.name
    if max(width, height) > encoder.longest_side:
        raise PictureWriteError(
            f"{name} holds at most {encoder.longest_side} pixels a side, the result has {width} x {height}; "
            "write a png or use a smaller --scale"
        )
    if _too_large(encoder, width, height):
        assert encoder.most_pixels is not None
        needed = encoder_bytes(format, width=width, height=height) / 1e9
        raise PictureWriteError(
            f"{name} is written up to {encoder.most_pixels / 1e6:g} megapixels, for its encoder takes it as a whole; "
            f"the result has {width} x {height} pixels and would need {needed:.1f} GB: write a png (streamed) or a jpg"
        )


def encoder_bytes(format: PictureFormat, *, width: int, height: int) -> int:
    """Bytes that the writer of a picture of this size needs: nearly none for a PNG."""
    return encoder_of(format).memory * width * height


def open_writer(path: Path, encoding: PictureEncoding, *, quality: int = DEFAULT_QUALITY) -> PictureWriter:
    """Start the file `path`; `quality` 1..100 is for the formats that lose detail."""
    if encoding.encoder.pillow is None:
        return _PngFile(path=path, encoding=encoding)
    return _PillowFile(path=path, encoding=encoding, quality=quality)


def encoder_of(format: PictureFormat) -> Encoder:
    """The record of its encoder. Raises `PictureWriteError` for a format that is only read."""
    if format.encoder is None:
        raise PictureWriteError(f"{format.name} is read, not written; expected one of {', '.join(written_formats())}")
    return format.encoder


def _too_large(encoder: Encoder, width: int, height: int) -> bool:
    too_many = encoder.most_pixels is not None and width * height > encoder.most_pixels
    return too_many or max(width, height) > encoder.longest_side


class _PngFile:
    def __init__(self, *, path: Path, encoding: PictureEncoding):
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
    def __init__(self, *, path: Path, encoding: PictureEncoding, quality: int):
        self._path, self._encoding, self._quality = path, encoding, quality
        height, width, channels = encoding.shape
        if encoding.encoder.alpha and channels in (2, 4):
            mode = "RGBA"
        else:
            mode = "L" if encoding.encoder.grey and channels < 3 else "RGB"
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
        encoder = self._encoding.encoder
        options = {**encoder.options, "icc_profile": self._encoding.icc_profile}
        if encoder.quality:
            options["quality"] = self._quality
        if self._encoding.exif:
            options["exif"] = self._encoding.exif
        # Not straight into the file: some of Pillow's encoders do not notice that a disk is full.
        content = io.BytesIO()
        image = with_palette(np.asarray(self._image)) if encoder.palette else self._image
        image.save(content, encoder.pillow, **options)
        self._path.write_bytes(content.getbuffer())


def with_palette(pixels: np.ndarray) -> Image.Image:
    """A frame in up to 256 colours, dithered. A pixel that is less than half opaque becomes clear."""
    clear = pixels[:, :, 3] < _HALF if pixels.shape[2] == 4 else None
    colours = 256 if clear is None else 255
    seen = pixels[:, :, :3].reshape(-1, 3) if clear is None or clear.all() else pixels[~clear][:, :3]
    # The palette is that of a sample: median cut over all pixels takes eight times as long and looks no better.
    count = min(_SAMPLE, len(seen))
    sample = np.ascontiguousarray(seen[np.arange(count) * len(seen) // count])
    palette_image = Image.fromarray(sample[None]).quantize(colours)
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, :3])).quantize(
        palette=palette_image, dither=Image.Dither.FLOYDSTEINBERG
    )
    if clear is not None:
        indices = np.asarray(image).copy()
        indices[clear] = _CLEAR
        palette = (image.getpalette() or []) + [0] * 768
        image = Image.fromarray(indices, "P")
        image.putpalette(palette[:768])
        image.info["transparency"] = _CLEAR
    return image
