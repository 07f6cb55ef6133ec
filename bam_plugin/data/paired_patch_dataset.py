"""Datasets of LR and HR pairs, registered in BasicSR's DATASET_REGISTRY: random patches for training, whole images for
tests.

Training must not wait for its data. `PairedPatchDataset` decodes each image once, keeps the bytes in memory that worker
processes share, and cuts patches before it converts them to float. Crop, flip and rotation follow from (seed, epoch,
sample number) alone. So the samples do not depend on the number of workers, and a resumed training sees the samples
that it would have seen.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset

from bam_plugin.data.source import ImageSource, paired_keys
from bam_plugin.data.storage import StorageError
from bam_plugin.errors import BamError

# `cache: auto` keeps a set in memory if it takes at most this part of the available memory.
_MEMORY_PART = 0.5

_logger = logging.getLogger("basicsr")


@DATASET_REGISTRY.register()
class PairedPatchDataset(Dataset):
    """Random patches of HR images and the patches of their LR images.

    A sample is {"lq": (3, P / scale, P / scale), "gt": (3, P, P), "lq_path", "gt_path"}, RGB float32 in [0, 1], with
    P = gt_size. Sample numbers may exceed the number of images (`dataset_enlarge_ratio`): number n is image n % len,
    with a crop of its own. Images smaller than P are left out, and the log says so.

    The form of the constructor is BasicSR's. Options: dataroot_gt, dataroot_lq (both LMDBs or folders, equal names; of
    other datasets' options `io_backend` is not needed and `filename_tmpl` such as '{}x4' is understood for folders),
    gt_size (HR pixels, a multiple of scale), scale, use_hflip and use_rot (default true), manual_seed (default 0) and
    cache: memory, none (decode at each access), or auto (default; memory if the set takes at most half of it).
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.scale, self.gt_size = int(opt["scale"]), int(opt["gt_size"])
        if self.gt_size < self.scale or self.gt_size % self.scale:
            raise BamError(f"gt_size must be a positive multiple of the scale {self.scale}, found {self.gt_size}.")
        self.hflip, self.rotate = bool(opt.get("use_hflip", True)), bool(opt.get("use_rot", True))
        self.seed = int(opt.get("manual_seed") or 0)
        self._gt, self._lq, keys = _open_pair(opt)
        sizes = {key: self._gt.size(key) for key in keys}
        self.keys = [key for key in keys if min(sizes[key]) >= self.gt_size]
        if not self.keys:
            raise BamError(f"no image in {self._gt.path} has the {self.gt_size} pixels of gt_size on both sides.")
        if len(self.keys) < len(keys):
            _logger.warning(
                "left out %d of %d images in %s, which are smaller than gt_size %d",
                len(keys) - len(self.keys), len(keys), self._gt.path, self.gt_size,
            )  # fmt: skip
        # It is in shared memory, because set_epoch must reach persistent workers that run already.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        decoded = sum(3 * sizes[key][0] * sizes[key][1] for key in self.keys)
        self._cached: list[tuple[np.ndarray, np.ndarray]] | None = None
        if self._wants_memory(opt.get("cache", "auto"), decoded + decoded // self.scale**2):
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                self._cached = list(pool.map(self._read, self.keys))
            self._gt.close()
            self._lq.close()

    def set_epoch(self, epoch: int) -> None:
        """Choose the crops, flips and rotations of `epoch` (from 0)."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> dict[str, Any]:
        index = number % len(self.keys)
        gt, lq = self._cached[index] if self._cached is not None else self._read(self.keys[index])
        generator = np.random.default_rng((self.seed, int(self._epoch), number))
        side = self.gt_size // self.scale
        top = int(generator.integers(lq.shape[1] - side + 1))
        left = int(generator.integers(lq.shape[2] - side + 1))
        hflip, vflip, transpose = generator.integers(2, size=3)
        turn = (bool(hflip) and self.hflip, bool(vflip) and self.rotate, bool(transpose) and self.rotate)
        name = self.keys[index]
        return {
            "lq": _patch(lq, top, left, side, turn),
            "gt": _patch(gt, top * self.scale, left * self.scale, self.gt_size, turn),
            "lq_path": name,
            "gt_path": name,
        }

    def _read(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(gt, lq) as RGB planes (3, H, W), uint8."""
        gt, lq = self._gt.read(key), self._lq.read(key)
        if gt.shape[0] != lq.shape[0] * self.scale or gt.shape[1] != lq.shape[1] * self.scale:
            raise StorageError(
                f"{key}: expected an HR image {self.scale} times as large as the LR image, found "
                f"{gt.shape[0]}x{gt.shape[1]} in {self._gt.path} and {lq.shape[0]}x{lq.shape[1]} in {self._lq.path}."
            )
        return _planes(gt), _planes(lq)

    def _wants_memory(self, cache: str, needed: int) -> bool:
        if cache not in ("auto", "memory", "none"):
            raise BamError(f"cache must be auto, memory or none, found {cache!r}.")
        fits = needed <= _MEMORY_PART * _available_memory()
        if cache == "auto":
            _logger.info(
                "%.2f GB of images are %s", needed / 1e9, "kept in memory" if fits else "decoded at each access"
            )
        return fits if cache == "auto" else cache == "memory"


@DATASET_REGISTRY.register()
class BenchmarkDataset(Dataset):
    """Whole image pairs for validation and tests, as `bam prepare benchmark` makes them.

    An item is {"lq": (3, H, W), "gt": (3, H * scale, W * scale), "lq_path", "gt_path"}, RGB float32 in [0, 1]. The gt
    of a single-channel file has one channel. By that `calculate_psnr_y` and `calculate_ssim_y` know that they measure
    it as grey. The form of the constructor is BasicSR's; options: dataroot_gt, dataroot_lq (folders or LMDBs), scale,
    filename_tmpl.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.scale = int(opt["scale"])
        self._gt, self._lq, self.keys = _open_pair(opt)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = self.keys[index]
        gt, lq = self._gt.read(key, keep_grey=True), self._lq.read(key)
        height, width = lq.shape[0] * self.scale, lq.shape[1] * self.scale
        if gt.shape[0] < height or gt.shape[1] < width:
            raise StorageError(
                f"{key}: the HR image in {self._gt.path} is {gt.shape[0]}x{gt.shape[1]}, expected at least "
                f"{height}x{width} for the LR image in {self._lq.path} at x{self.scale}."
            )
        gt = gt[:height, :width]
        return {
            "lq": _tensor(_planes(lq)),
            "gt": _tensor(gt[None] if gt.ndim == 2 else _planes(gt)),
            "lq_path": self._lq.name(key),
            "gt_path": self._gt.name(key),
        }


def _open_pair(opt: dict[str, Any]) -> tuple[ImageSource, ImageSource, list[str]]:
    suffix = str(opt.get("filename_tmpl") or "{}").removeprefix("{}")
    gt = ImageSource(path=opt["dataroot_gt"])
    lq = ImageSource(path=opt["dataroot_lq"], suffix=suffix)
    return gt, lq, paired_keys(gt, lq)


def _planes(bgr: np.ndarray) -> np.ndarray:
    """(H, W, 3) BGR -> (3, H, W) RGB. A patch of planes converts to float in whole rows."""
    return np.ascontiguousarray(bgr.transpose(2, 0, 1)[::-1])


def _patch(planes: np.ndarray, top: int, left: int, side: int, turn: tuple[bool, bool, bool]) -> torch.Tensor:
    """Cut a square and turn it: (horizontal flip, vertical flip, transposition), in this order."""
    patch = planes[:, top : top + side, left : left + side]
    hflip, vflip, transpose = turn
    patch = patch[:, :: -1 if vflip else 1, :: -1 if hflip else 1]
    return _tensor(patch.transpose(0, 2, 1) if transpose else patch)


def _tensor(planes: np.ndarray) -> torch.Tensor:
    """uint8 -> float32 in [0, 1], contiguous; the same values as BasicSR's x.astype(float32) / 255."""
    out = np.empty(planes.shape, np.float32)
    np.divide(planes, np.float32(255), out=out, dtype=np.float32)
    return torch.from_numpy(out)


def _available_memory() -> int:
    """Bytes of memory that are available, or all bytes of the machine if the system does not say."""
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123 (not a file on a disk)
            values = dict(line.split(":", 1) for line in file)
        return int(values["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 33
