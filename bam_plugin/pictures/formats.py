"""The picture formats, one record each: what reads a format, how deep it is, what it holds, and how it is written.

Reader, writer, the search of folders, help texts, documentation and tests walk these records. A new format is one more
record. Pillow decodes, and OpenCV decodes 16 bits a channel, which Pillow can do only for grey.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageFile

WHITE_16 = 65535
"""White in 16 bits a channel, unless a file's header says otherwise."""


def _never(image: ImageFile.ImageFile) -> bool:
    return False


def _always(image: ImageFile.ImageFile) -> bool:
    return True


def _white_16(content: bytes) -> int:
    return WHITE_16


def _no_chunks(content: bytes) -> dict[bytes, bytes]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """How results are stored in a format. A note says what the format cannot hold, or an error refuses it."""

    pillow: str | None
    """Name of Pillow's encoder; None: the PNG stream of this package, which takes the picture row by row."""
    endings: tuple[str, ...]
    """Lower-case name endings that a result can have."""
    longest_side: int
    memory: int
    """Measured bytes per pixel of the encoding: the picture in Pillow, the encoder's memory, the file."""
    most_pixels: int | None = None
    """Larger results are refused, because the encoder takes the picture as a whole."""
    most_frame_pixels: int | None = None
    """Greatest number of pixels of all frames of an animation, because its encoder keeps every frame."""
    deep: bool = False
    """Holds 16 bits a channel."""
    alpha: bool = True
    grey: bool = False
    """Holds one channel; otherwise grey is stored as RGB."""
    most_exif: int | None = None
    """Bytes of the largest EXIF block."""
    palette: bool = False
    """Holds up to 256 colours, and parts that are clear or opaque, nothing between."""
    quality: bool = False
    """Loses detail by `quality` 1..100."""
    animated: bool = False
    """Holds several frames with their durations."""
    stills: bool = True
    """Suits single pictures that came in this format, too."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of Pillow's `save`."""


@dataclass(frozen=True, kw_only=True)
class PictureFormat:
    """One format of picture files. The functions ask an opened file (its header) or the bytes of the whole file."""

    name: str
    """As `--ext` takes it; the ending of results."""
    decoders: tuple[str, ...]
    """Pillow's names of the decoders that may run. Other decoders never run (EPS would start Ghostscript)."""
    endings: tuple[str, ...]
    """Lower-case name endings that mark such a file when a folder is searched."""
    animated: bool = False
    """May hold several frames, of which the first one is a picture of its own."""
    paged: bool = False
    """The frames are pages, without a duration."""
    is_deep: Callable[[ImageFile.ImageFile], bool] = _never
    """Whether the header says more than 8 bits a channel, which Pillow's mode does not show."""
    white: Callable[[bytes], int] = _white_16
    """The value of white in a file of 16 bits a channel."""
    turns_later: Callable[[ImageFile.ImageFile], bool] = _always
    """Whether the header's size is the stored one, which the EXIF orientation still turns, and EXIF is known."""
    colour_chunks: Callable[[bytes], dict[bytes, bytes]] = _no_chunks
    """The colours of a file without ICC profile, as PNG chunks."""
    encoder: Encoder | None = None
    """None: the format is read only, and its pictures become PNG."""


def _png_is_deep(image: ImageFile.ImageFile) -> bool:
    # The raw mode of the decoder names the file's depth: "RGB;16B", "LA;16B", ...
    return any("16" in str(tile[3]) for tile in image.tile)


def _png_turns_later(image: ImageFile.ImageFile) -> bool:
    # Asking a PNG without an early EXIF block for its orientation would decode all of it.
    return "exif" in image.info


def _png_colour_chunks(content: bytes) -> dict[bytes, bytes]:
    """The chunks gAMA, cHRM and sRGB of a file that Pillow has decoded."""
    found: dict[bytes, bytes] = {}
    position = 8
    while position + 8 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        name = content[position + 4 : position + 8]
        if name == b"IDAT":
            break
        if name in (b"gAMA", b"cHRM", b"sRGB"):
            found[name] = content[position + 8 : position + 8 + length]
        position += 12 + length
    return found


def _tiff_is_deep(image: ImageFile.ImageFile) -> bool:
    bits = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
    return max(bits if isinstance(bits, tuple) else (bits,)) > 8


def _ppm_is_deep(image: ImageFile.ImageFile) -> bool:
    return any("ppm" in str(tile[0]) and _ppm_depth(tile) > 255 for tile in image.tile)


def _ppm_depth(tile: Any) -> int:
    arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    return max((value for value in arguments if isinstance(value, int)), default=255)


def _ppm_white(content: bytes) -> int:
    """The third number of a PPM header; comments run from # to the end of the line."""
    header = re.sub(rb"#[^\n]*\n", b" ", content[:4096])
    numbers = re.match(rb"P\d\s+\d+\s+\d+\s+(\d+)", header)
    return max(1, int(numbers.group(1))) if numbers else WHITE_16


PNG = PictureFormat(
    name="png",
    decoders=("PNG",),
    endings=("png", "apng"),
    animated=True,
    is_deep=_png_is_deep,
    turns_later=_png_turns_later,
    colour_chunks=_png_colour_chunks,
    encoder=Encoder(
        pillow=None, endings=("png",), longest_side=2**31 - 1, memory=0, deep=True, grey=True, animated=True
    ),
)

_RECORDS = (
    PNG,
    PictureFormat(
        name="jpg",
        decoders=("JPEG", "MPO"),
        endings=("jpg", "jpeg", "jpe", "jfif", "mpo"),
        encoder=Encoder(
            pillow="JPEG",
            endings=("jpg", "jpeg"),
            longest_side=65500,  # JPEG_MAX_DIMENSION of libjpeg; the file format itself ends at 65535
            memory=6,
            alpha=False,
            grey=True,
            most_exif=65533,  # what one marker segment holds
            quality=True,
            options={"subsampling": "4:4:4"},  # the colour planes keep their resolution: it has just been computed
        ),
    ),
    PictureFormat(
        name="webp",
        decoders=("WEBP",),
        endings=("webp",),
        animated=True,
        encoder=Encoder(
            pillow="WEBP",
            endings=("webp",),
            longest_side=16383,
            memory=16,  # 13 to 16, the more the noisier: 1.3 GB for the largest one
            most_pixels=80_000_000,
            quality=True,
            animated=True,
        ),
    ),
    PictureFormat(
        name="tif",
        decoders=("TIFF",),
        endings=("tif", "tiff"),
        animated=True,
        paged=True,
        is_deep=_tiff_is_deep,
        turns_later=_never,  # Pillow gives its size as turned
    ),
    PictureFormat(name="bmp", decoders=("BMP", "DIB"), endings=("bmp", "dib")),
    PictureFormat(
        name="gif",
        decoders=("GIF",),
        endings=("gif",),
        animated=True,
        encoder=Encoder(
            pillow="GIF",
            endings=("gif",),
            longest_side=65535,
            memory=12,
            most_frame_pixels=800_000_000,
            palette=True,
            animated=True,
            stills=False,
        ),
    ),
    PictureFormat(
        name="ppm", decoders=("PPM",), endings=("ppm", "pgm", "pbm", "pnm"), is_deep=_ppm_is_deep, white=_ppm_white
    ),
    PictureFormat(
        name="avif",
        decoders=("AVIF",),
        endings=("avif",),
        animated=True,
        encoder=Encoder(
            pillow="AVIF",
            endings=("avif",),
            longest_side=32768,  # of what its decoders take
            memory=46,
            most_pixels=28_000_000,
            quality=True,
            options={
                "subsampling": "4:4:4",
                "speed": 8,
            },  # 6, the default, takes 2.5 times as long for 13 % fewer bytes
        ),
    ),
)

FORMATS = {format.name: format for format in _RECORDS}
"""Name -> record of every format that is read, PNG first."""

ENDINGS = frozenset(f".{ending}" for format in _RECORDS for ending in format.endings)
"""Lower-case name endings, with their dot, that mark a picture when a folder is searched."""

_BY_DECODER = {decoder: format for format in _RECORDS for decoder in format.decoders}


def decoder_names() -> tuple[str, ...]:
    """Pillow's names of all decoders that may run, those that this Pillow lacks among them."""
    return tuple(_BY_DECODER)


def format_of(decoder: str | None) -> PictureFormat:
    """The record of Pillow's decoder `decoder`."""
    return _BY_DECODER[decoder or ""]


@functools.cache
def written_formats() -> dict[str, PictureFormat]:
    """Name -> record of each format that results can be stored in with the Pillow that is installed; PNG first."""
    Image.init()
    return {
        format.name: format
        for format in _RECORDS
        if format.encoder is not None and (format.encoder.pillow is None or format.encoder.pillow in Image.SAVE)
    }


def written_endings() -> dict[str, PictureFormat]:
    """Ending (with its dot) -> record of each name that a result can have."""
    found = written_formats().values()
    return {f".{ending}": format for format in found if format.encoder for ending in format.encoder.endings}


def lossy_formats() -> list[str]:
    """Names of the formats that lose detail by quality."""
    return [name for name, format in written_formats().items() if format.encoder and format.encoder.quality]
