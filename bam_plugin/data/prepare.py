"""Training sets from folders of images: HR and LR LMDBs with equal keys, written in parallel, resumable, atomic.

`prepare_training_set` does it for any images, `prepare_div2k` for DIV2K as it ships, `prepare_classic` for the
classical small sets. Images that cannot be read are reported and left out; the rest is kept.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bam_plugin.data.benchmarks import BENCHMARKS, PreparedBenchmark, find_benchmarks, prepare_benchmark
from bam_plugin.data.dataset_writer import DatasetWriter, fingerprint, refuse_existing
from bam_plugin.data.images import list_images, read_image, unique_keys
from bam_plugin.data.overlap import Overlap, find_overlaps
from bam_plugin.data.pairs import Grid, common_modulus, make_pairs
from bam_plugin.data.parallel import LeftOut, write_dataset
from bam_plugin.data.storage import AlreadyPreparedError, Entry, check_space, require_lmdb
from bam_plugin.errors import BamError
from bam_plugin.pictures.bgr import MAX_PIXELS
from bam_plugin.pictures.read import probe_picture

# The folders of `prepare_classic`.
_CLASSIC = ("T91", "BSDS400", "CC0_photos", "CID22_photos", "CLIC_half")
_CLASSIC_VALIDATION = "DIV2K_valid_crop256"
# Images encoded beforehand to estimate the bytes on disk, spread over the set.
_SAMPLED = 3
_SPACE_MARGIN = 1.15

_logger = logging.getLogger(__name__)

Part = TypeVar("Part")


@dataclass
class PreparedSet:
    """What was written: `hr` and `lr[scale]` (LMDBs or folders), the number of pairs, the images left out, and those
    that are in a benchmark too.
    """

    hr: Path
    lr: dict[int, Path]
    pairs: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    overlaps: list[Overlap] = field(default_factory=list)


def prepare_training_set(
    images: Iterable[str | os.PathLike],
    root: str | os.PathLike,
    *,
    name: str = "train",
    scales: Sequence[int] = (4,),
    crop_size: int | None = 480,
    step: int = 240,
    min_size: int = 0,
    store: str = "lmdb",
    lr_images: dict[int, dict[Path, Path]] | None = None,
    benchmarks: Sequence[str | os.PathLike] = (),
    drop_overlaps: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> PreparedSet:
    """Write `images` as HR sub-images and bicubic LR sub-images below `root`.

    As LMDBs (`store="lmdb"`): NAME_HR_sub.lmdb and NAME_LR_bicubic_X4_sub.lmdb. As folders (`store="folder"`):
    NAME_HR_sub and NAME_LR_bicubic/X4_sub, and meta_info_NAME_HR_sub_GT.txt for BasicSR's `meta_info_file`. Without
    `_sub` when `crop_size` is None (whole images). Keys and file names are equal in HR and LR.

    Args:
        images: HR image files.
        root: folder of the results.
        name: NAME of the set.
        scales: whole numbers of at least 2.
        crop_size: side of the sub-images, HR pixels, a multiple of 12; None keeps whole images.
        step: from one sub-image to the next, HR pixels, a multiple of 12, at most `crop_size`.
        store: "lmdb" or "folder".
        min_size: images with a shorter side than this (or 12) are skipped.
        lr_images: `lr_images[scale][hr_path]` names LR images that exist already.
        benchmarks: folders with benchmarks; images that show a part of an image in them are warned of.
        drop_overlaps: leave such images out.
        workers: threads, one per core by default.
        progress: show it, with the time left, on standard error.

    A killed run is resumed by the same call. Raises AlreadyPreparedError when a result exists, StorageError when the
    disk has no room, BamError when no image is usable.
    """
    paths = list(dict.fromkeys(Path(path) for path in images))
    root = Path(root)
    grid = Grid(crop_size=crop_size, step=step, modulus=common_modulus(scales), min_size=min_size)
    result = _places(root, name, scales, whole=crop_size is None, store=store)
    outputs = {"HR": result.hr, **{f"X{scale}": path for scale, path in result.lr.items()}}
    work_folder = root / f".{name}.partial"
    if not work_folder.exists():
        refuse_existing(outputs.values())
    if store == "lmdb":
        require_lmdb()  # before the search, which takes minutes
    result.overlaps = _warn_of_overlaps(paths, benchmarks, workers, progress)
    if drop_overlaps:
        found = {overlap.image for overlap in result.overlaps}
        paths = [path for path in paths if path not in found]
    if not paths:
        raise BamError("expected at least one image to prepare, found none.")
    keys = unique_keys(paths)

    def work(path: Path) -> dict[str, list[Entry]]:
        given = {s: read_image(table[path]) for s, table in (lr_images or {}).items() if path in table}
        return make_pairs(read_image(path), keys[path], grid=grid, scales=scales, given_lr=given)

    bounds, entries = _upper_bounds(paths, grid, scales)
    settings = {
        "format": 1,
        "grid": repr(grid),
        "scales": list(scales),
        "store": store,
        "images": fingerprint([*paths, *(lr for table in (lr_images or {}).values() for lr in table.values())]),
    }
    if not work_folder.exists():
        check_space(root, _bytes_on_disk(paths, work, bounds))
    with DatasetWriter(
        work=work_folder,
        outputs=outputs,
        settings=settings,
        lists={"HR": root / f"meta_info_{result.hr.name}_GT.txt"} if store == "folder" else None,
        map_bytes=bounds,
        entries=entries,
    ) as writer:
        result.left_out = write_dataset(writer, paths, work, label=name, workers=workers, progress=progress)
        result.pairs = len(writer.shapes["HR"])
    return result


def prepare_div2k(
    root: str | os.PathLike,
    output: str | os.PathLike,
    *,
    scales: Sequence[int] = (2, 3, 4),
    crop_size: int | None = 480,
    **options: Any,
) -> list[PreparedSet]:
    """Prepare DIV2K from the folders as it ships below `root`, into `output`.

    Expected: DIV2K_train_HR, DIV2K_valid_HR or both. LR images are taken from DIV2K_{train,valid}_LR_bicubic/X{2,3,4}
    (`0001x2.png`) where these folders exist, and made by MATLAB's bicubic where they do not. The training set is cut
    into sub-images, the validation set is kept whole. A part that is prepared already is left as it is; when nothing
    is left to do AlreadyPreparedError is raised. `options`: the others of `prepare_training_set`.
    """
    root = Path(root)
    parts = [part for part in ("train", "valid") if (root / f"DIV2K_{part}_HR").is_dir()]
    if not parts:
        raise BamError(
            f"expected the folder DIV2K_train_HR or DIV2K_valid_HR in {root}, found neither: "
            "unpack DIV2K's archives there."
        )

    def prepare(part: str) -> PreparedSet:
        paths = list_images(root / f"DIV2K_{part}_HR")
        given = {scale: _given_lr(root, part, scale, paths) for scale in scales}
        size = crop_size if part == "train" else None
        return prepare_training_set(
            paths, output, name=f"DIV2K_{part}", scales=scales, crop_size=size, lr_images=given, **options
        )

    return prepare_parts([functools.partial(prepare, part) for part in parts])


def prepare_classic(
    root: str | os.PathLike, output: str | os.PathLike, *, scales: Sequence[int] = (2, 3, 4), **options: Any
) -> list[PreparedSet | PreparedBenchmark]:
    """Prepare the small classical sets below `root`, for those who do not have DIV2K.

    The folders of _CLASSIC that are there become whole-image LMDBs, OUTPUT/classic/classic_HR.lmdb and
    classic_LR_bicubic_X4.lmdb; DIV2K_valid_crop256, when there, becomes OUTPUT/DIV2K_valid_crop256/GTmod4 and LRbicx4
    for validation. Otherwise as `prepare_div2k`.
    """
    root, output = Path(root), Path(output)
    training = [root / name for name in _CLASSIC if (root / name).is_dir()]
    if not training:
        raise BamError(f"expected one of the folders {', '.join(_CLASSIC)} in {root}, found none.")

    def prepare_training() -> PreparedSet:
        paths = [path for folder in training for path in list_images(folder)]
        place = output / "classic"
        return prepare_training_set(paths, place, name="classic", scales=scales, crop_size=None, **options)

    def prepare_validation() -> PreparedBenchmark:
        threads = {key: options[key] for key in ("workers", "progress") if key in options}
        return prepare_benchmark(root / _CLASSIC_VALIDATION, output, scales=scales, **threads)

    validation = [prepare_validation] if (root / _CLASSIC_VALIDATION).is_dir() else []
    return prepare_parts([prepare_training, *validation])


def prepare_folders(
    inputs: Sequence[str | os.PathLike], output: str | os.PathLike, *, name: str, **options: Any
) -> list[PreparedSet]:
    """Prepare all images of the folders `inputs` as one training set NAME in `output`.

    `options`: those of `prepare_training_set`.
    """
    paths = [path for folder in inputs for path in list_images(folder)]
    return [prepare_training_set(paths, output, name=name, **options)]


def prepare_benchmarks(root: str | os.PathLike, output: str | os.PathLike, **options: Any) -> list[PreparedBenchmark]:
    """Prepare each of the five benchmarks that lies below `root` into `output`; those that do not are named in the log.

    `options`: `scales`, `workers` and `progress` of `prepare_benchmark`. A benchmark that is prepared already is left
    as it is; when nothing is left to do AlreadyPreparedError is raised. Raises BamError when none is found.
    """
    found = find_benchmarks(root)
    if not found:
        raise BamError(f"expected folders named {', '.join(BENCHMARKS)} in {root}, found none of them.")
    for name in BENCHMARKS:
        if name not in found:
            _logger.info("%s is skipped: not found in %s", name, root)
    return prepare_parts(
        [functools.partial(prepare_benchmark, folder, output, name=name, **options) for name, folder in found.items()]
    )


def prepare_parts(parts: Sequence[Callable[[], Part]]) -> list[Part]:
    """Call each of `parts`, passing over those that are prepared already; raises AlreadyPreparedError when all are."""
    prepared, present = [], []
    for prepare in parts:
        try:
            prepared.append(prepare())
        except AlreadyPreparedError as error:
            _logger.info("%s", error)
            present.append(error)
    if not prepared:
        raise present[0]
    return prepared


def _given_lr(root: Path, part: str, scale: int, hr_paths: Sequence[Path]) -> dict[Path, Path]:
    """HR path -> LR path from the LR folder that DIV2K ships for `scale`; empty when there is no such folder."""
    name = f"DIV2K_{part}_LR_bicubic"
    # DIV2K's archives unpack to the first, or to the second when each is unpacked into a folder of its own.
    candidates = (root / name / f"X{scale}", root / f"{name}_X{scale}" / name / f"X{scale}", root / f"{name}_X{scale}")
    folder = next((folder for folder in candidates if folder.is_dir()), None)
    if folder is None:
        _logger.info("no %s for x%d: LR images are made by MATLAB's bicubic", name, scale)
        return {}
    table = {}
    for path in hr_paths:
        lr = next(
            (
                folder / f"{stem}.png"
                for stem in (f"{path.stem}x{scale}", path.stem)
                if (folder / f"{stem}.png").is_file()
            ),
            None,
        )
        if lr is None:
            raise BamError(
                f"expected {folder / f'{path.stem}x{scale}.png'} beside {path}: complete that folder, or move it away "
                "to have the LR images made by MATLAB's bicubic."
            )
        table[path] = lr
    return table


def _warn_of_overlaps(
    paths: Sequence[Path], benchmarks: Sequence[str | os.PathLike], workers: int | None, progress: bool
) -> list[Overlap]:
    overlaps = find_overlaps(paths, benchmarks, workers=workers, progress=progress)
    for overlap in overlaps:
        _logger.warning("%s shows a part of the benchmark image %s", overlap.image, overlap.benchmark)
    return overlaps


def _places(root: Path, name: str, scales: Sequence[int], *, whole: bool, store: str) -> PreparedSet:
    """Where a set goes, in the names of BasicSR's documentation."""
    sub = "" if whole else "_sub"
    if store == "lmdb":
        lr = {scale: root / f"{name}_LR_bicubic_X{scale}{sub}.lmdb" for scale in scales}
        return PreparedSet(root / f"{name}_HR{sub}.lmdb", lr)
    if store == "folder":
        return PreparedSet(root / f"{name}_HR{sub}", {s: root / f"{name}_LR_bicubic" / f"X{s}{sub}" for s in scales})
    raise BamError(f"expected store to be lmdb or folder, found {store!r}.")


def _upper_bounds(paths: Sequence[Path], grid: Grid, scales: Sequence[int]) -> tuple[dict[str, int], int]:
    """({collection: most bytes its PNGs can have}, number of sub-images), from the image headers alone."""
    pixels = entries = 0
    for path in paths:
        try:
            boxes = grid.boxes(*grid.usable(*_size(path)))
        except BamError:
            # Unreadable or too small: reported when its turn comes.
            continue
        # EXIF rotation may swap the sides, which changes neither the number of pixels nor that of the boxes.
        pixels += sum(h * w for _, _, h, w in boxes)
        entries += len(boxes)
    # PNG adds one byte per row and five per 16 KB at worst, and its chunks.
    return {name: int(pixels / s**2 * 3 * 1.01) + entries * 1024 for name, s in _factors(scales).items()}, entries


def _size(path: Path) -> tuple[int, int]:
    info = probe_picture(path, max_pixels=MAX_PIXELS)
    return info.height, info.width


def _bytes_on_disk(
    paths: Sequence[Path], work: Callable[[Path], dict[str, list[Entry]]], bounds: dict[str, int]
) -> int:
    """About how many bytes the set will take: the compression of a few images, applied to all."""
    stored = raw = 0
    for path in paths[:: max(1, len(paths) // _SAMPLED)][:_SAMPLED]:
        try:
            collections_ = work(path)
        except BamError:
            continue
        for entries in collections_.values():
            stored += sum(len(entry.png) for entry in entries)
            raw += sum(entry.shape[0] * entry.shape[1] * 3 for entry in entries)
    return int(sum(bounds.values()) * (stored / raw if raw else 1) * _SPACE_MARGIN)


def _factors(scales: Sequence[int]) -> dict[str, int]:
    return {"HR": 1, **{f"X{scale}": scale for scale in scales}}
