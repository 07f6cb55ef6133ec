"""Training sets from folders of images: HR and LR LMDBs with equal keys, written in parallel, resumable, atomic.

`prepare_training_set` does it for any images, `prepare_div2k` for DIV2K as it ships, `prepare_classic` for the
classical small sets. Images that cannot be read are reported and left out; the rest is kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from bam_plugin.data.images import list_images, read_image, unique_keys
from bam_plugin.data.pairs import Grid, TooSmallError, common_modulus, make_pairs
from bam_plugin.data.runner import LeftOut, run_job
from bam_plugin.data.storage import Entry, Job, check_space, refuse_existing
from bam_plugin.errors import BamError

# Images encoded beforehand to estimate the bytes on disk, spread over the set.
_SAMPLED = 3
_SPACE_MARGIN = 1.15

_logger = logging.getLogger(__name__)


@dataclass
class PreparedSet:
    """What was written: `hr` and `lr[scale]` (LMDBs or folders), the number of pairs, and the images left out."""

    hr: Path
    lr: dict[int, Path]
    pairs: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


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
    workers: int | None = None,
    progress: bool = True,
) -> PreparedSet:
    """Write `images` as HR sub-images and bicubic LR sub-images below `root`.

    As LMDBs (`store="lmdb"`): NAME_HR_sub.lmdb and NAME_LR_bicubic_X4_sub.lmdb; as folders (`store="folder"`):
    NAME_HR_sub and NAME_LR_bicubic/X4_sub; without `_sub` when `crop_size` is None (whole images). Keys and file names
    are equal in HR and LR. `crop_size` and `step` are HR pixels. Images whose shorter side is below `min_size` (or 12)
    are skipped. `lr_images[scale][hr_path]` names LR images that exist already. `workers` threads (default: one per
    core). Progress with the time left goes to standard error.

    A killed run is resumed by the same call. Raises AlreadyPreparedError when a result exists, StorageError when the
    disk has no room, BamError when no image is usable.
    """
    paths = [Path(path) for path in images]
    if not paths:
        raise BamError("expected at least one image to prepare, found none.")
    root = Path(root)
    grid = Grid(crop_size=crop_size, step=step, modulus=common_modulus(scales), min_size=min_size)
    result = _places(root, name, scales, whole=crop_size is None, store=store)
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
    work_folder = root / f".{name}.partial"
    outputs = {"HR": result.hr, **{f"X{scale}": path for scale, path in result.lr.items()}}
    if not work_folder.exists():
        refuse_existing(outputs.values())
        check_space(root, _bytes_on_disk(paths, work, bounds))
    with Job(work=work_folder, outputs=outputs, settings=settings, map_bytes=bounds, entries=entries) as job:
        result.left_out = run_job(job, paths, work, label=name, workers=workers, progress=progress)
        result.pairs = len(job.shapes["HR"])
    return result


def prepare_div2k(
    root: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    scales: Sequence[int] = (2, 3, 4),
    crop_size: int | None = 480,
    step: int = 240,
    store: str = "lmdb",
    workers: int | None = None,
    progress: bool = True,
) -> list[PreparedSet]:
    """Prepare DIV2K from the folders as it ships below `root`, into `output` (default: `root`).

    Expected: DIV2K_train_HR; DIV2K_valid_HR when validation is wanted. LR images are taken from
    DIV2K_{train,valid}_LR_bicubic/X{2,3,4} (`0001x2.png`) where these folders exist, and made by MATLAB's bicubic where
    they do not. The training set is cut into sub-images, the validation set is kept whole. A part that is prepared
    already is left as it is; when nothing is left to do AlreadyPreparedError is raised.
    """
    root = Path(root)
    output = root if output is None else Path(output)
    parts = [part for part in ("train", "valid") if (root / f"DIV2K_{part}_HR").is_dir()]
    if not parts:
        raise BamError(
            f"expected the folder DIV2K_train_HR or DIV2K_valid_HR in {root}: unpack DIV2K's archives there."
        )
    sets, present = [], []
    for part in parts:
        part_crop = crop_size if part == "train" else None
        name = f"DIV2K_{part}"
        hr = _places(output, name, scales, whole=part_crop is None, store=store).hr
        if hr.exists() and not (output / f".{name}.partial").exists():
            present.append(hr)
            continue
        paths = list_images(root / f"{name}_HR")
        sets.append(
            prepare_training_set(
                paths,
                output,
                name=name,
                scales=scales,
                crop_size=part_crop,
                step=step,
                store=store,
                lr_images={scale: _given_lr(root, part, scale, paths) for scale in scales},
                workers=workers,
                progress=progress,
            )
        )
    if not sets:
        refuse_existing(present)
    return sets


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
            with Image.open(path) as image:
                width, height = image.size
            boxes = grid.boxes(*grid.usable(height, width))
        except (OSError, TooSmallError, Image.DecompressionBombError):
            continue
        # EXIF rotation may swap the sides, which changes neither the number of pixels nor that of the boxes.
        pixels += sum(h * w for _, _, h, w in boxes)
        entries += len(boxes)
    # PNG adds one byte per row and five per 16 KB at worst, and its chunks.
    return {name: int(pixels / s**2 * 3 * 1.01) + entries * 1024 for name, s in _factors(scales).items()}, entries


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


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes when an image is added, removed, replaced or touched."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{path}\0missing\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
