"""A folder or an LMDB of images, read by key. The datasets draw from it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from bam_plugin.data.images import decode_image, list_images, read_image
from bam_plugin.data.storage import StorageError, close_lmdb, open_lmdb, read_meta_info
from bam_plugin.pictures.bgr import MAX_PIXELS
from bam_plugin.pictures.errors import PictureError
from bam_plugin.pictures.read import probe_picture


class ImageSource:
    """Images under keys: file stems of a folder, keys of an LMDB made by `bam prepare` or by BasicSR.

    Worker processes may hold copies. `suffix` stands behind the key in the stems of a folder's files (`x4` for
    `0001x4.png`).
    """

    def __init__(self, *, path: str | os.PathLike, suffix: str = "") -> None:
        self.path = Path(path)
        self._is_lmdb = self.path.suffix == ".lmdb"
        if self._is_lmdb:
            self._shapes = read_meta_info(self.path)
            self.keys = sorted(self._shapes)
        else:
            self._files = {path.stem.removesuffix(suffix): path for path in list_images(self.path)}
            self.keys = sorted(self._files)

    def size(self, key: str) -> tuple[int, int]:
        """(height, width) of an image, without decoding it."""
        if self._is_lmdb:
            return self._shapes[key][:2]
        info = probe_picture(self._files[key], max_pixels=MAX_PIXELS)
        return info.height, info.width

    def read(self, key: str, *, keep_grey: bool = False) -> np.ndarray:
        """The image as uint8 BGR (H, W, 3), or (H, W) for a single-channel one if `keep_grey`."""
        if not self._is_lmdb:
            return read_image(self._files[key], keep_grey=keep_grey)
        with open_lmdb(self.path).begin(buffers=True) as transaction:
            content = transaction.get(key.encode("ascii"))
            if content is None:
                raise StorageError(f"{self.path} lacks the key {key} that its meta_info.txt lists: prepare it anew.")
            try:
                return decode_image(bytes(content), where=f"{self.path}: {key}", keep_grey=keep_grey)
            except PictureError as error:
                raise StorageError(f"the image {key} in {self.path} is damaged: prepare it anew ({error}).") from error

    def close(self) -> None:
        """Close the LMDB; reading opens it again."""
        if self._is_lmdb:
            close_lmdb(self.path)

    def name(self, key: str) -> str:
        """The name of the image in results: the path of the file, or the key."""
        return key if self._is_lmdb else str(self._files[key])


def paired_keys(gt: ImageSource, lq: ImageSource) -> list[str]:
    """The keys of two sources. Raises StorageError, which names missing images, unless both have the same keys."""
    if gt.keys == lq.keys:
        return gt.keys
    without_lq = sorted(set(gt.keys) - set(lq.keys))
    without_gt = sorted(set(lq.keys) - set(gt.keys))
    examples = [f"{key} is only in {gt.path}" for key in without_lq[:2]]
    examples += [f"{key} is only in {lq.path}" for key in without_gt[:2]]
    raise StorageError(
        f"expected the same images in {gt.path} and {lq.path}, found {len(without_lq)} without LR and "
        f"{len(without_gt)} without HR: {'; '.join(examples)}."
    )
