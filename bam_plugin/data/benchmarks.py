"""The five benchmarks (Set5, Set14, B100, Urban100, Manga109): find their HR images, make their GT and LR folders.

NAME/GTmodS holds the HR images cut to multiples of the scale S, NAME/LRbicxS their MATLAB-bicubic LR images under the
same names. Each scale has its own GT folder, as the published numbers require. One GTmod12 for all scales, as BasicSR's
scripts make it, moves Set5 x4 by 0.03 dB.

Grey: `bridge` of Set14 is a single-channel file, and the published Set14 numbers measure it as grey. It stays a
single-channel file here, and becomes one again if a copy of Set14 stores it as three equal channels. The test dataset
and the metrics of this package measure such files as grey. Every other file keeps its channels: `man` of Set14 and the
pages of Manga109 look grey, but they are colour files and are measured on Y, as in the literature.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bam_plugin.data.dataset_writer import DatasetWriter, fingerprint, refuse_existing
from bam_plugin.data.images import read_image, unique_keys
from bam_plugin.data.pairs import TooSmallError, downscale
from bam_plugin.data.parallel import LeftOut, write_dataset
from bam_plugin.data.storage import Entry
from bam_plugin.errors import BamError
from bam_plugin.pictures.bgr import MAX_PIXELS, encode_png
from bam_plugin.pictures.formats import ENDINGS
from bam_plugin.pictures.imresize import mod_crop
from bam_plugin.pictures.read import probe_picture

# Name -> (other names in use, number of images).
BENCHMARKS: dict[str, tuple[tuple[str, ...], int]] = {
    "Set5": ((), 5),
    "Set14": ((), 14),
    "B100": (("BSD100", "BSDS100"), 100),
    "Urban100": ((), 100),
    "Manga109": ((), 109),
}
# Folders that hold the HR images of a set. Uncut ones come before those that a script cut.
_HR_FOLDERS = ("original", "HR", "GT", "GTmod2", "GTmod3", "GTmod4", "GTmod12")
_LR_NAME = re.compile(r"(_LR|_SRF_\d+_(?!HR$)\w+|_bicubic|x[2348])$")
_HR_SUFFIX = re.compile(r"(_SRF_\d+)?_(HR|GT)$")

_logger = logging.getLogger(__name__)


@dataclass
class PreparedBenchmark:
    """The files below `folder`: GTmodS and LRbicxS for each of `scales`, with `images` images each."""

    name: str
    folder: Path
    scales: tuple[int, ...]
    images: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


def find_benchmarks(root: str | os.PathLike) -> dict[str, Path]:
    """Name -> folder of each benchmark below `root` (or `root` itself), under any of its names, whatever the case."""
    root = Path(root)
    if not root.is_dir():
        raise BamError(f"expected a folder that holds benchmarks, found no folder at {root}: check the path.")
    folders: dict[str, Path] = {}
    for path in sorted(path for path in root.iterdir() if path.is_dir()):
        folders.setdefault(path.name.lower(), path)
    # `root` may be `.`. A folder below it counts by its own name, even if it is a link.
    folders.setdefault(root.resolve().name.lower(), root)
    found = {}
    for name, (aliases, _) in BENCHMARKS.items():
        names = [each.lower() for each in (name, *aliases)]
        folder = next((folders[each] for each in names if each in folders), None)
        if folder is not None:
            found[name] = folder
    return found


def benchmark_places(places: Iterable[Path]) -> list[Path]:
    """Those of `places` that are folders with benchmarks, each once."""
    unique = {path.resolve(): path for path in places if path.is_dir()}
    return [path for path in unique.values() if find_benchmarks(path)]


def find_hr_images(folder: str | os.PathLike) -> dict[str, Path]:
    """Key -> HR file of one benchmark, in any known layout.

    Known layouts: HR files in the folder itself (with or without `_HR`, LR files beside them or not), in a folder HR,
    GT, original or GTmodN beside LR folders, or in image_SRF_N folders (`img_001_SRF_4_HR.png`). In the last
    layout the largest HR file of each image is the original: Urban100's image_SRF_2 holds half-size images. Raises
    BamError if no layout fits.
    """
    folder = Path(folder)
    candidates = _hr_files(folder)
    if not candidates:
        for path in sorted(folder.glob("image_SRF_*")):
            candidates += _hr_files(path)
    if not candidates:
        by_name = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
        hr_folder = next((by_name[name.lower()] for name in _HR_FOLDERS if name.lower() in by_name), None)
        if hr_folder is not None:
            candidates = _hr_files(hr_folder)
    if not candidates:
        raise BamError(
            f"no HR images found in {folder}: expected image files in it, or in a folder {', '.join(_HR_FOLDERS)}, "
            "or image_SRF_4/*_HR.png."
        )
    by_stem: dict[str, list[Path]] = {}
    for path in candidates:
        by_stem.setdefault(_HR_SUFFIX.sub("", path.stem), []).append(path)
    chosen = {stem: paths[0] if len(paths) == 1 else max(paths, key=_pixels) for stem, paths in by_stem.items()}
    keys = unique_keys(Path(stem) for stem in chosen)
    return {keys[Path(stem)]: path for stem, path in sorted(chosen.items())}


def prepare_benchmark(
    folder: str | os.PathLike,
    root: str | os.PathLike,
    *,
    name: str | None = None,
    scales: Sequence[int] = (2, 3, 4),
    workers: int | None = None,
    progress: bool = True,
) -> PreparedBenchmark:
    """Make ROOT/NAME/GTmodS and ROOT/NAME/LRbicxS (PNG) from the benchmark in `folder`, for each of `scales`.

    `name` is that of the folder by default. Scales that are there already stay as they are. Raises AlreadyPreparedError
    if nothing is left to do, and BamError if there is no HR image.
    """
    folder, root = Path(folder), Path(root)
    name = name or folder.resolve().name
    target = root / name
    outputs = {s: {f"GTmod{s}": target / f"GTmod{s}", f"LRbicx{s}": target / f"LRbicx{s}"} for s in scales}
    work_folder = root / f".{name}.partial"
    missing = [s for s in scales if not all(path.exists() for path in outputs[s].values())]
    if not missing:
        refuse_existing(path for pair in outputs.values() for path in pair.values())
    images = find_hr_images(folder)
    keys = {path: key for key, path in images.items()}
    if any(path.parent.name.lower().startswith("gtmod") for path in keys):
        _logger.warning("%s holds images that are cut already, so numbers may differ a little", folder)
    result = PreparedBenchmark(name, target, tuple(missing))

    def work(path: Path) -> dict[str, list[Entry]]:
        return _make_folders(read_benchmark_image(path, name), keys[path], missing)

    paths = list(keys)
    settings = {"format": 1, "scales": missing, "images": fingerprint(paths)}
    places = {key: path for s in missing for key, path in outputs[s].items()}
    with DatasetWriter(work=work_folder, outputs=places, settings=settings) as writer:
        result.left_out = write_dataset(writer, paths, work, label=name, workers=workers, progress=progress)
        result.images = len(writer.shapes[f"GTmod{missing[0]}"])
    expected = BENCHMARKS.get(name, ((), result.images))[1]
    if result.images != expected:
        _logger.warning("%s has %d images, expected %d, so its mean cannot be compared", name, result.images, expected)
    return result


def _make_folders(image: np.ndarray, key: str, scales: Iterable[int]) -> dict[str, list[Entry]]:
    entries = {}
    for scale in scales:
        gt = mod_crop(image, scale)
        # The metrics crop twice the scale, and SSIM needs a window of 11 pixels.
        if min(gt.shape[:2]) < 2 * scale + 11:
            raise TooSmallError(f"{gt.shape[0]}x{gt.shape[1]} is too small to be measured at x{scale}")
        for collection, part in ((f"GTmod{scale}", gt), (f"LRbicx{scale}", downscale(gt, scale))):
            shape = (part.shape[0], part.shape[1], 1 if part.ndim == 2 else part.shape[2])
            entries[collection] = [Entry(key, encode_png(part), shape)]
    return entries


def read_benchmark_image(path: Path, name: str) -> np.ndarray:
    """An HR image of the benchmark `name`, uint8 BGR (H, W, 3) or grey (H, W); bridge of Set14 is always grey."""
    image = read_image(path, keep_grey=True)
    if name == "Set14" and path.stem == "bridge" and image.ndim == 3 and (image == image[..., :1]).all():
        return np.ascontiguousarray(image[..., 0])
    return image


def _hr_files(folder: Path) -> list[Path]:
    """The HR files directly in `folder`: those marked HR or GT, or, if none is marked, all that are not marked LR."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
    marked = [path for path in files if _HR_SUFFIX.search(path.stem)]
    return marked or [path for path in files if not _LR_NAME.search(path.stem)]


def _pixels(path: Path) -> int:
    info = probe_picture(path, max_pixels=MAX_PIXELS)
    return info.height * info.width
