"""How good a packed file is: PSNR and SSIM of what it makes of a benchmark's small images. Needs no torch.

The small images are made from the originals by MATLAB's bicubic, as the literature makes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bam_plugin.data.benchmarks import find_hr_images, read_benchmark_image
from bam_plugin.data.pairs import TooSmallError, downscale
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.pictures.imresize import mod_crop
from bam_plugin.pictures.measures import psnr_y, ssim_y
from bam_plugin.upscale.upscaler import Upscaler


@dataclass(frozen=True)
class Benchmark:
    """Pairs of a benchmark: 8-bit small pictures (RGB or grey) and their originals (BGR or grey)."""

    name: str
    pairs: list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class SetResult:
    """What was measured on one set: mean PSNR in dB, mean SSIM in [-1, 1], number of images."""

    dataset: str
    psnr: float
    ssim: float
    images: int


def read_benchmark(folder: str | os.PathLike, scale: int) -> Benchmark:
    """Read a benchmark in any layout (see `find_hr_images`), and make its small images.

    Raises BamError where no image is found, TooSmallError for an image with no pixel left.
    """
    folder = Path(folder)
    name = folder.resolve().name
    pairs = []
    for path in find_hr_images(folder).values():
        original = mod_crop(read_benchmark_image(path, name), scale)
        if 0 in original.shape:
            raise TooSmallError(f"{path} is too small to be made {scale}x smaller")
        small = downscale(original, scale)
        pairs.append((np.ascontiguousarray(small[..., ::-1] if small.ndim == 3 else small), original))
    return Benchmark(name, pairs)


def enlarged(
    model: PackedModel | MixedModel, benchmark: Benchmark, *, scale: int | None = None, **choices: object
) -> Iterator[tuple]:
    """(result, original) of each pair, both BGR or grey; `choices` are those of Upscaler."""
    upscaler = Upscaler(model, **choices)  # type: ignore[arg-type]
    for small, original in benchmark.pairs:
        large = upscaler.upscale(small, scale=scale)
        yield (large[:, :, ::-1] if large.ndim == 3 else large), original


def mean_psnr(model: PackedModel | MixedModel, benchmark: Benchmark, *, threads: int | None = None) -> float:
    """Mean Y-PSNR in dB of the 8-bit results, as many pixels as the scale left out at each edge."""
    pairs = enlarged(model, benchmark, threads=threads)
    return float(np.mean([psnr_y(result, original, model.scale) for result, original in pairs]))


def evaluate(
    model: PackedModel | MixedModel,
    folder: str | os.PathLike,
    *,
    scale: int | None = None,
    threads: int | None = None,
    precision: str = "fp32",
) -> SetResult:
    """Mean PSNR and SSIM of a packed network on the benchmark in `folder`, on Y (see `pictures.measures`).

    `scale` is the network's own by default; for another one its results are resized, as `bam upscale -s` does.
    """
    scale = scale or model.scale
    benchmark = read_benchmark(folder, scale)
    pairs = list(enlarged(model, benchmark, scale=scale, threads=threads, precision=precision))
    psnr = [psnr_y(result, original, scale) for result, original in pairs]
    ssim = [ssim_y(result, original, scale) for result, original in pairs]
    return SetResult(benchmark.name, float(np.mean(psnr)), float(np.mean(ssim)), len(pairs))
