"""Is a training image also in a benchmark? Then the benchmark's numbers are worth nothing.

The same picture may be there as a crop, at another size, rotated, or as a JPEG, so hashes of whole files or of fixed
crops do not find it. SIFT describes hundreds of small neighbourhoods of a picture at all sizes and rotations; a
candidate is a benchmark image many of whose neighbourhoods lie in the training image in one consistent arrangement
(RANSAC), and it is confirmed by laying one picture over the other and correlating the pixels: two photos of one tiger
pass the first test and fail the second. Mirrored copies are not looked for.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bam_plugin.data.benchmarks import find_benchmarks, find_hr_images
from bam_plugin.data.images import read_image
from bam_plugin.errors import BamError
from bam_plugin.pictures.errors import PictureError
from bam_plugin.pictures.opencv import cv2

# Pictures are compared at this longer side (pixels), with at most so many neighbourhoods each.
_SIDE = 512
_FEATURES = 300
# Cosine of two descriptors that may show the same thing.
_SIMILAR = 0.9
# Neighbourhoods in one arrangement; measured: 60 strangers reach 11 at most, at sizes that are allowed.
_INLIERS = 10
# Size of the benchmark picture inside the training picture.
_SCALES = (0.2, 5.0)
# Correlation of the pixels laid over each other; the same picture as a JPEG reaches 0.95 and more.
_CORRELATION = 0.85
_OVERLAP_SIDE = 24

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Overlap:
    """A training image and the benchmark image (`Set5/woman`) of which it shows a part; the pixels' correlation."""

    image: Path
    benchmark: str
    correlation: float


class BenchmarkIndex:
    """The pictures of the benchmarks, ready to be looked for in other pictures. `images`: name -> file."""

    def __init__(self, *, images: Mapping[str, Path]) -> None:
        self.names = list(images)
        self._pictures = [_grey(path) for path in images.values()]
        features = [_features(picture) for picture in self._pictures]
        self._points = [points for points, _ in features]
        self._descriptors = [descriptors for _, descriptors in features]

    def find(self, path: Path) -> Overlap | None:
        """The benchmark image that the image `path` shares most with, or None. Raises PictureError."""
        picture = _grey(path)
        points, descriptors = _features(picture)
        best: Overlap | None = None
        for name, other, other_points, other_descriptors in zip(
            self.names, self._pictures, self._points, self._descriptors, strict=True
        ):
            mine, theirs = _matches(descriptors, other_descriptors)
            if len(mine) < _INLIERS:
                continue
            placement = _placement(other_points[theirs], points[mine])
            if placement is None:
                continue
            correlation = _correlation(picture, other, placement)
            if correlation >= _CORRELATION and (best is None or correlation > best.correlation):
                best = Overlap(path, name, correlation)
        return best


def find_overlaps(
    images: Sequence[Path],
    benchmarks: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    workers: int | None = None,
    progress: bool = True,
) -> list[Overlap]:
    """Those of `images` that show (a part of) an image of the benchmarks found in the folders `benchmarks`.

    Unreadable images are passed over: preparing reports them. `workers` threads, one per core by default.
    """
    folders = [benchmarks] if isinstance(benchmarks, str | os.PathLike) else benchmarks
    known: dict[str, Path] = {}
    for folder in folders:
        for name, place in find_benchmarks(folder).items():
            try:
                known.update({f"{name}/{key}": path for key, path in find_hr_images(place).items()})
            except BamError as error:
                _logger.warning("%s is not looked for in the training images: %s", name, error)
    if not known:
        return []
    index = BenchmarkIndex(images=known)

    def find(path: Path) -> Overlap | None:
        try:
            return index.find(path)
        except PictureError:
            return None

    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = tqdm(
            pool.map(find, images),
            total=len(images),
            unit="image",
            desc="overlap with benchmarks",
            disable=not progress,
        )
        return [overlap for overlap in results if overlap is not None]


def _grey(path: Path) -> np.ndarray:
    """(H, W) uint8, at most _SIDE pixels long."""
    picture = cv2.cvtColor(read_image(path), cv2.COLOR_BGR2GRAY)
    factor = _SIDE / max(picture.shape)
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else picture


def _features(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) and descriptors (N, 128) of unit length (square roots of SIFT's: Arandjelovic, Zisserman 2012)."""
    points, descriptors = cv2.SIFT.create(nfeatures=_FEATURES).detectAndCompute(picture, None)
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
    return np.array([point.pt for point in points], np.float32), descriptors.astype(np.float32)


def _matches(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of similar descriptors, each with its most similar partner only (stripes match everywhere)."""
    if not len(first) or not len(second):
        return np.zeros(0, int), np.zeros(0, int)
    similarity = first @ second.T
    partner = similarity.argmax(axis=1)
    mine = np.nonzero(similarity[np.arange(len(first)), partner] > _SIMILAR)[0]
    return mine, partner[mine]


def _placement(source: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """The similarity (2, 3) that carries enough of the points `source` to `target`, or None."""
    matrix, inliers = cv2.estimateAffinePartial2D(source, target, ransacReprojThreshold=4, maxIters=1000)
    if matrix is None or not _SCALES[0] <= np.hypot(matrix[0, 0], matrix[1, 0]) <= _SCALES[1]:
        return None
    kept = inliers.ravel().astype(bool)
    # One point that matches many others is one witness only.
    witnesses = min(len(np.unique(points[kept], axis=0)) for points in (source, target))
    return matrix if witnesses >= _INLIERS else None


def _correlation(picture: np.ndarray, other: np.ndarray, placement: np.ndarray) -> float:
    """Correlation of the grey values where `other`, moved by `placement`, lies over `picture`; 0 without overlap."""
    size = picture.shape[1::-1]
    moved = cv2.warpAffine(other.astype(np.float32), placement, size, flags=cv2.INTER_AREA)
    inside = cv2.warpAffine(np.ones_like(other), placement, size, flags=cv2.INTER_NEAREST).astype(bool)
    if inside.sum() < _OVERLAP_SIDE**2:
        return 0.0
    # A little blur: the placement is exact to about a pixel, and JPEG blocks are not the picture.
    first = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1.5)[inside]
    second = cv2.GaussianBlur(moved, (0, 0), 1.5)[inside]
    if first.std() < 1 or second.std() < 1:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
