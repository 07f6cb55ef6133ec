"""Find image files, read them as training and testing use them (`pictures.bgr`), and name them."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bam_plugin.pictures.bgr import MAX_PIXELS, to_bgr
from bam_plugin.pictures.errors import PictureAccessError, UnsupportedPictureError
from bam_plugin.pictures.formats import ENDINGS
from bam_plugin.pictures.read import Picture, decode_picture, read_picture

# LMDB allows 511 bytes. A sub-image number and a file suffix still follow a key.
_MAX_KEY = 200


def list_images(folder: str | os.PathLike) -> list[Path]:
    """All image files below `folder` by the ending of their names, sorted by path. Hidden files are left out.

    Raises PictureAccessError if the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PictureAccessError(f"expected a folder of images, found no folder at {folder}: check the path.")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise PictureAccessError(f"no image in {folder}: expected files that end with {', '.join(sorted(ENDINGS))}.")
    return found


def read_image(path: str | os.PathLike, *, keep_grey: bool = False) -> np.ndarray:
    """Read `path` as uint8: (H, W, 3) BGR, or (H, W) for a single-channel file if `keep_grey`.

    Raises PictureError if the file does not open or decode, or holds float values.
    """
    return _as_bgr(read_picture(path, max_pixels=MAX_PIXELS), path, keep_grey)


def decode_image(content: bytes, *, where: str, keep_grey: bool = False) -> np.ndarray:
    """The same for the bytes of a file; `where` names them in errors."""
    return _as_bgr(decode_picture(content, where=where, max_pixels=MAX_PIXELS), where, keep_grey)


def _as_bgr(picture: Picture, where: str | os.PathLike, keep_grey: bool) -> np.ndarray:
    try:
        return to_bgr(picture, keep_grey=keep_grey)
    except UnsupportedPictureError as error:
        raise UnsupportedPictureError(f"{where}: {error}") from None


def unique_keys(paths: Iterable[str | os.PathLike]) -> dict[Path, str]:
    """One key per path, as LMDBs need them: short, in ASCII, without dots and blanks, all different.

    The key is the file's stem (BasicSR cuts a key at its first dot, so dots become underscores). Files with
    equal keys get the name of their folder in front, and a hash of their path if that does not tell them apart.
    """
    paths = [Path(path) for path in paths]
    keys = {path: _plain(path.stem) for path in paths}
    for longer in (lambda path: f"{_plain(path.parent.name)}_{_plain(path.stem)}", _hashed):
        for path in _not_unique(keys):
            keys[path] = longer(path)
    return keys


def _not_unique(keys: dict[Path, str]) -> Sequence[Path]:
    # Upper and lower case count as equal, because keys also name files and some file systems ignore case.
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
