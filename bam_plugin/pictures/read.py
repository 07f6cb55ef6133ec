"""Read any common picture file into pixels, and keep its metadata.

The content decides the format, never the name. The header decides the bit depth, never the values. EXIF rotation is
applied, palettes and CMYK become RGB, and ICC profile and EXIF stay with the picture. Files are not trusted: the size
in the header is checked before anything is decoded, and every error of a decoder becomes a named error.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from bam_plugin.errors import BamError
from bam_plugin.pictures.decode import decode, has_alpha, is_deep
from bam_plugin.pictures.errors import (
    DamagedPictureError,
    PictureAccessError,
    PictureArrayError,
    PictureTooLargeError,
    UnknownPictureError,
)
from bam_plugin.pictures.formats import FORMATS, PictureFormat, decoder_names, format_of

MAX_PIXELS = 100_000_000
"""Larger pictures are refused unless the caller raises the limit, because a decompression bomb is small on disk."""

_ORIENTATION = 0x0112
_pillow_limit = threading.Lock()


@dataclass(frozen=True)
class PictureInfo:
    """The facts of a header: size in pixels after EXIF rotation, format, and the kind of the pixels."""

    width: int
    height: int
    format: PictureFormat
    alpha: bool
    deep: bool
    """More than 8 bits a channel."""
    frames: int = 1
    """Of an animation; pages do not count."""


@dataclass
class Picture:
    """A decoded picture: `pixels` is (H, W, C) uint8, uint16 or float32; C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA."""

    pixels: np.ndarray
    format: PictureFormat
    icc_profile: bytes | None = None
    exif: bytes | None = None
    """EXIF block ready for another file: orientation, thumbnail and maker notes removed."""
    png_colour: dict[bytes, bytes] = field(default_factory=dict)
    """PNG chunks gAMA, cHRM, sRGB of a file without profile."""
    notes: list[str] = field(default_factory=list)
    """Notes for a person: first frame of several, profile converted, ..."""


def probe_picture(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> PictureInfo:
    """Read only the header of a picture file. Raises `PictureError`."""
    with _open(_checked(path), path, max_pixels) as image, decoding(path):
        width, height = image.size
        turned = format_of(image.format).turns_later(image) and _orientation(image) >= 5
        return PictureInfo(
            width=height if turned else width,
            height=width if turned else height,
            format=format_of(image.format),
            alpha=has_alpha(image),
            deep=is_deep(image),
            frames=frame_count(image),
        )


def read_picture(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file into a `Picture`. Raises `PictureError`; `max_pixels` is compared with the header's size."""
    try:
        content = _checked(path).read_bytes()
    except OSError as error:
        raise PictureAccessError(f"{path}: cannot be read ({error.strerror or error})") from error
    return decode_picture(content, where=path, max_pixels=max_pixels)


def decode_picture(content: bytes, *, where: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Picture:
    """The `Picture` of the bytes of a file. `where` names them in errors. Raises `PictureError`."""
    with _open(io.BytesIO(content), where, max_pixels) as image, decoding(where):
        format = format_of(image.format)
        picture = Picture(pixels=np.empty((0, 0, 1), np.uint8), format=format)
        deep, raw_mode = is_deep(image), str(image.tile[0][3]) if image.tile else ""  # known until it is loaded
        frames = getattr(image, "n_frames", 1) if format.animated else 1
        if frames > 1:
            picture.notes.append(f"only the first of {frames} frames is used")
        image.load()
        orientation = _orientation(image)  # a PNG may carry its EXIF block behind the pixels
        # CMYK is converted by its profile, which does not describe the result.
        picture.icc_profile = _profile(image, picture.notes) if image.mode != "CMYK" else None
        picture.exif = _portable_exif(image, picture)
        if picture.icc_profile is None:
            picture.png_colour = format.colour_chunks(content)
        pixels = decode(image, content, deep=deep, raw_mode=raw_mode, notes=picture.notes, path=where)
        picture.pixels = _rotated(pixels, orientation)
    _drop_foreign_profile(picture)
    return picture


@contextlib.contextmanager
def opened(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile.ImageFile]:
    """A picture file as Pillow's image, its size checked. Decode it within `decoding`. Raises `PictureError`."""
    with _open(_checked(path), path, max_pixels) as image:
        yield image


def frame_count(image: ImageFile.ImageFile) -> int:
    """Frames of an animation; 1 for a single picture, and for one of several pages."""
    format = format_of(image.format)
    return getattr(image, "n_frames", 1) if format.animated and not format.paged else 1


def check_array(image: np.ndarray) -> np.ndarray:
    """Return a picture array as a plain one (H, W, C) without copying; raise `PictureArrayError` for anything else.

    Accepted: (H, W) or (H, W, 1..4), at least one pixel, uint8, uint16, or float32 with all values in [0, 1]. The data
    type alone tells the range. A subclass of arrays (`np.matrix`, `np.memmap`) counts as the array that it holds; a
    masked array must not have masked pixels.
    """
    # A list is refused, because the range of its numbers could only be guessed.
    if not isinstance(image, np.ndarray):
        raise PictureArrayError(
            f"a picture is a NumPy array or the path of a file, found {type(image).__name__}; make it an array whose "
            "type tells the range, for example with numpy.asarray(x, dtype='uint8')"
        )
    if np.ma.is_masked(image):
        raise PictureArrayError(
            "a picture has a value for each pixel, found a masked array with masked pixels; give them one, for example "
            "with x.filled(0), or make an alpha channel of the mask"
        )
    image = np.asarray(image)
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise PictureArrayError(
            f"pictures are uint8, uint16 or float32 arrays, found {image.dtype}; "
            "convert it, for example with (x / x.max()).astype('float32')"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4)) or 0 in image.shape:
        raise PictureArrayError(
            "pictures have the shape (H, W) or (H, W, C) with C = 1 grey, 2 grey + alpha, 3 RGB or 4 RGB + alpha, "
            f"found {image.shape}"
        )
    if image.dtype == np.float32:
        low, high = float(image.min()), float(image.max())
        # NaN fails this comparison, too.
        if not (low >= 0 and high <= 1):
            raise PictureArrayError(
                f"float32 pictures have values in [0, 1], found {low:g} to {high:g}; "
                "divide by the largest possible value (255, 65535) or clip"
            )
    return image[:, :, None] if image.ndim == 2 else image


@functools.cache
def _decoders() -> list[str]:
    Image.init()
    return [name for name in decoder_names() if name in Image.OPEN]


def _checked(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.is_dir():
        raise PictureAccessError(f"{path}: is a folder, a picture file was expected")
    if not path.exists():
        raise PictureAccessError(f"{path}: there is no such file")
    if not path.is_file():
        raise PictureAccessError(f"{path}: is no regular file, a picture file was expected")
    return path


@contextlib.contextmanager
def _open(source: Path | io.BytesIO, path: str | os.PathLike, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """Open with Pillow, which reads the header, and check the size before any pixel is decoded."""
    with decoding(path), pixel_limit(max_pixels):
        try:
            image = Image.open(source, formats=_decoders())
        except Image.UnidentifiedImageError as error:
            raise UnknownPictureError(
                f"{path}: the content is no picture of a known format ({', '.join(FORMATS)})"
            ) from error
        except Image.DecompressionBombError as error:
            found = re.search(r"\((\d+) pixels\)", str(error))
            raise _too_large(path, int(found[1]) if found else None, max_pixels) from error
    with image:
        if image.width * image.height > max_pixels:
            raise _too_large(path, image.width * image.height, max_pixels)
        yield image


@contextlib.contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
    """Within the block Pillow refuses larger pictures and frames before it allocates them.

    Its limit is a variable of its module, and it refuses what has more than twice as many pixels. One thread at a time.
    """
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, math.ceil(max_pixels / 2)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _too_large(path: str | os.PathLike, pixels: int | None, max_pixels: int) -> PictureTooLargeError:
    found = f"{pixels / 1e6:.1f} megapixels exceed" if pixels else "the size that it announces exceeds"
    return PictureTooLargeError(
        f"{path}: {found} the limit of {max_pixels / 1e6:g} megapixels; "
        "raise the limit (--max-megapixels, max_pixels=) if you trust the file"
    )


@contextlib.contextmanager
def decoding(path: str | os.PathLike) -> Iterator[None]:
    """Turn every error of a decoder at a broken file into a named error, and keep its warnings off the terminal."""
    try:
        with _quiet():
            yield
    except BamError:
        raise
    except PermissionError as error:
        raise PictureAccessError(f"{path}: cannot be read ({error.strerror})") from error
    except (Exception, Image.DecompressionBombError) as error:
        # Decoders of untrusted bytes throw nearly anything (struct.error, SyntaxError, OSError, IndexError, ...).
        raise DamagedPictureError(f"{path}: the picture is damaged or cut short ({error})") from error


class _Quiet:
    """Keeps Pillow's warnings off the terminal while one thread or several decode.

    The list of filters belongs to the process, so the first thread that enters changes it and the last one that leaves
    restores it.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filters = warnings.catch_warnings()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\..*")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._filters.__exit__(None, None, None)


_quiet = _Quiet()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; a broken EXIF block means 1."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the parser of a metadata block must not cost the picture
        return 1
    return value if value in range(1, 9) else 1


def _rotated(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, C) pixels as EXIF orientation 1..8 says they were stored."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _portable_exif(image: Image.Image, picture: Picture) -> bytes | None:
    """The EXIF block without what would be wrong in the enlarged file: orientation, thumbnail, maker notes, size."""
    if not image.info.get("exif"):
        return None
    try:
        exif = image.getexif()
        exif.pop(_ORIENTATION, None)
        inner = exif.get_ifd(0x8769)
        for tag in (0x927C, 0xA002, 0xA003):  # MakerNote holds file offsets; the others are the old width and height
            inner.pop(tag, None)
        return exif.tobytes()
    except Exception:  # metadata must not cost the picture
        picture.notes.append("the EXIF block is broken and was left out")
        return None


def _profile(image: Image.Image, notes: list[str]) -> bytes | None:
    """The ICC profile; a TIFF may store it under a type that is no bytes."""
    profile = image.info.get("icc_profile") or None
    if profile is None or isinstance(profile, bytes):
        return profile
    notes.append("the ICC profile is broken and was left out")
    return None


def _drop_foreign_profile(picture: Picture) -> None:
    """Drop a profile (for grey, RGB or CMYK values) that does not fit the decoded pixels and would spoil them."""
    if picture.icc_profile is None:
        return
    space = picture.icc_profile[16:20]
    wanted = b"GRAY" if picture.pixels.shape[2] < 3 else b"RGB "
    if space != wanted:
        picture.notes.append(f"an ICC profile for {space.decode('latin-1').strip()!r} values was left out")
        picture.icc_profile = None
