"""Reading image files of any kind into the one kind that training and testing use, and naming them.

Inside this package images are (H, W, 3) or (H, W) uint8 arrays in OpenCV's channel order (BGR): they go from file to
file. What is not like that is converted in one documented way: 16 bits are rounded to 8 (v / 257), alpha is dropped
and the stored colours are kept, EXIF rotation is applied, grey becomes three equal channels unless `keep_grey`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bam_plugin.errors import BamError

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
# LMDB allows 511 bytes; a sub-image number and a file suffix are still added to a key.
_MAX_KEY = 200


class ImageReadError(BamError):
    """A file is not an image that can be read."""


def list_images(folder: str | os.PathLike) -> list[Path]:
    """All image files below `folder` (by suffix, hidden ones left out), sorted by their path.

    Raises ImageReadError when the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageReadError(f"expected a folder of images, found no folder at {folder}: check the path.")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ImageReadError(f"no image in {folder}: expected files that end with {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return found


def read_image(path: str | os.PathLike, *, keep_grey: bool = False) -> np.ndarray:
    """Read `path` as uint8: (H, W, 3) BGR, or (H, W) for a single-channel file when `keep_grey`.

    Raises ImageReadError when the file cannot be opened or decoded, or holds float values.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageReadError(f"cannot read {path}: {error.strerror}.") from error
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR if keep_grey else cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error:
        image = None
    if image is None or _is_cut_jpeg(content):
        raise ImageReadError(f"{path} is not a readable image (damaged, cut short or of another kind).")
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ImageReadError(f"{path} holds {image.dtype} values: expected 8 or 16 bits, convert it first.")
    return image


def encode_png(image: np.ndarray, *, level: int = 1) -> bytes:
    """PNG bytes of an (H, W) or (H, W, 3) BGR uint8 image; level 0..9 trades time for size."""
    done, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])
    if not done:
        raise ImageReadError(f"OpenCV cannot encode an image of shape {image.shape} as PNG.")
    return content.tobytes()


def unique_keys(paths: Iterable[str | os.PathLike]) -> dict[Path, str]:
    """One key per path, as LMDBs need them: ASCII, without dots and blanks, short, no two alike.

    The key is the file's stem (BasicSR cuts a key at its first dot, so dots become underscores). Files whose keys would
    be equal get their folder's name in front, and a hash of their path where that does not tell them apart either.
    """
    paths = [Path(path) for path in paths]
    keys = {path: _plain(path.stem) for path in paths}
    for longer in (lambda path: f"{_plain(path.parent.name)}_{_plain(path.stem)}", _hashed):
        for path in _not_unique(keys):
            keys[path] = longer(path)
    return keys


def _is_cut_jpeg(content: bytes) -> bool:
    """Whether a JPEG file ends within its picture, which OpenCV 4 decodes with a grey rest.

    A whole one has an end marker after its last scan; where that is not so, data may have been appended, and Pillow's
    strict decoder decides.
    """
    if not content.startswith(b"\xff\xd8") or content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda"):
        return False
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return True
    return False


def _not_unique(keys: dict[Path, str]) -> Sequence[Path]:
    # Compared without case: the same keys name files, and some file systems ignore case.
    count: dict[str, int] = {}
    for key in keys.values():
        count[key.lower()] = count.get(key.lower(), 0) + 1
    return [path for path, key in keys.items() if count[key.lower()] > 1]


def _plain(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9_+-]+", "_", ascii_name)
    return plain[:_MAX_KEY] or "image"


def _hashed(path: Path) -> str:
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return f"{_plain(path.stem)[: _MAX_KEY - 11]}_{digest}"
