"""Integer precisions of the float layers in a packed file, and their cost. It needs no torch.

Ranges of the activations come from calibration pictures, and the cost comes from benchmarks, which are never
calibration pictures. The cost is the mean Y-PSNR of the 8-bit results in fp32 minus that at the precision. A file takes
only precisions that cost less than MAX_COST on every benchmark. It is replaced whole or not at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bam_plugin.data.benchmarks import BENCHMARKS
from bam_plugin.data.evaluation import mean_psnr, read_benchmark
from bam_plugin.data.images import list_images, read_image
from bam_plugin.data.pairs import downscale
from bam_plugin.engine.calibrate import largest_activations, offered_ranges
from bam_plugin.errors import BamError
from bam_plugin.packed.format import PackedModel, read_packed, write_packed
from bam_plugin.packed.integers import with_integers
from bam_plugin.packed.precision import FIELD, INTEGERS, MAX_COST, Offer
from bam_plugin.packed.zoo import find_model
from bam_plugin.pictures.imresize import mod_crop

MAX_IMAGES = 64  # for calibration: spread over the folder's files
CALIBRATION_SIDE = 128  # pixels of the small pictures' middle that are used

_log = logging.getLogger(__name__)


class CalibrationError(BamError):
    """The calibration pictures or the benchmarks do not fit."""


@dataclass(frozen=True)
class MeasuredPrecision:
    """The cost of a precision: mean Y-PSNR of each benchmark at it, and the loss against fp32 in dB."""

    precision: str
    psnr: dict[str, float]
    cost_db: dict[str, float]
    offered: bool
    """Whether it costs less than MAX_COST on every benchmark, so that the file offers it."""


@dataclass(frozen=True)
class Quantization:
    """The result of `quantize`."""

    model: PackedModel
    """The network with the precisions that it offers now."""
    convolutions: list[str]
    """The float convolutions that are computed in integers."""
    fp32: dict[str, float]
    """Mean Y-PSNR of each benchmark in fp32."""
    precisions: list[MeasuredPrecision]


def quantize(
    file: str | os.PathLike,
    *,
    calibrate: str | os.PathLike,
    benchmarks: Sequence[str | os.PathLike],
    precisions: Sequence[str] = tuple(INTEGERS),
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
    write: bool = True,
    threads: int | None = None,
) -> Quantization:
    """Offer integer precisions of the float layers in the packed file `file`, if they cost little.

    calibrate: folder of pictures to take the ranges of activations from, no benchmark. benchmarks: folders of original
    images, in any layout, to measure the cost on. output: write there and leave `file` as it is; `overwrite` lets it
    replace a file. write: False only measures. An offer of an earlier measurement goes, even if no new one takes
    its place. Raises CalibrationError and the errors of reading packed files and pictures.
    """
    source, output = find_model(file), Path(output) if output is not None else None
    if source != Path(file) and output is None and write:
        raise CalibrationError(f"{file} comes with the package and stays as it is; give -o FILE")
    model = read_packed(source)
    if output is not None and output.exists() and write and not overwrite:
        raise CalibrationError(f"{output} exists; choose another name or give --force")
    folder, sets = Path(calibrate), [Path(each) for each in benchmarks]
    _refuse_benchmarks(folder, sets)
    paths = list_images(folder)
    paths = paths[:: -(-len(paths) // MAX_IMAGES)]
    calibration = {"name": folder.resolve().name, "images": len(paths)}
    _log.info("calibrating on %d pictures of %s", len(paths), folder)
    largest = largest_activations(model, _small_pictures(paths, model), threads=threads)
    pairs = [read_benchmark(each, model.scale) for each in sets]
    fp32 = {each.name: mean_psnr(model, each, threads=threads) for each in pairs}
    measured = []
    offers: dict[str, object] = {}
    for name in precisions:
        offer = Offer(INTEGERS[name], offered_ranges(largest, INTEGERS[name]), {}, calibration)
        _log.info("measuring %s on %s", name, ", ".join(fp32))
        quantized = with_integers(model, offer)
        psnr = {each.name: mean_psnr(quantized, each, threads=threads) for each in pairs}
        cost = {key: round(fp32[key] - psnr[key], 4) for key in fp32}
        offered = all(value < MAX_COST for value in cost.values())
        measured.append(MeasuredPrecision(name, psnr, cost, offered))
        if offered:
            offers[name] = replace(offer, cost=cost).facts()
    offering = _with_offers(model, offers, precisions)
    if write and (offering is not model or output is not None):
        write_packed(offering, output or source)
    return Quantization(offering, list(largest), fp32, measured)


def _with_offers(model: PackedModel, offers: dict[str, object], measured: Sequence[str]) -> PackedModel:
    """The model with `offers` in place of all `measured` before; the same object if nothing changes."""
    earlier: dict[str, object] = model.metadata.get(FIELD, {})  # type: ignore[assignment]
    section = {name: offer for name, offer in earlier.items() if name not in measured} | offers
    if section == earlier:
        return model
    facts = {key: value for key, value in model.metadata.items() if key != FIELD}
    return replace(model, metadata=facts | ({FIELD: section} if section else {}))


def _refuse_benchmarks(calibrate: Path, benchmarks: list[Path]) -> None:
    """Refuse pictures that also measure the cost: ranges from them would make it look smaller than it is."""
    own = calibrate.resolve()
    known = {name.lower() for key, (aliases, _) in BENCHMARKS.items() for name in (key, *aliases)}
    others = [folder.resolve() for folder in benchmarks]
    parts = {part.lower() for part in own.parts}
    clash = next((other for other in others if own == other or own in other.parents or other in own.parents), None)
    if clash is not None or parts & known:
        raise CalibrationError(
            f"--calibrate takes other pictures than the benchmarks, found {calibrate}"
            f"{f', which shares files with {clash}' if clash else ''}; give training or validation pictures"
        )
    names = [other.name for other in others]
    if len(set(names)) < len(names):
        raise CalibrationError(f"each benchmark is known by its folder's name; found {names}: a name twice")


def _small_pictures(paths: list[Path], model: PackedModel) -> Iterator[np.ndarray]:
    """The middles of the pictures, made small, as the network takes them."""
    scale, side = model.scale, CALIBRATION_SIDE
    for path in paths:
        image = read_image(path)
        top, left = (max(0, (length - side * scale) // 2) for length in image.shape[:2])
        part = mod_crop(image[top : top + side * scale, left : left + side * scale], scale)
        if 0 in part.shape:
            raise CalibrationError(
                f"{path}: {image.shape[1]}x{image.shape[0]} is too small to be made {scale}x smaller"
            )
        small = downscale(part, scale)[:, :, ::-1].astype(np.float32) / 255
        if model.num_in_ch == 3:
            yield np.ascontiguousarray(small)
        elif model.num_in_ch == 1:
            yield from (np.ascontiguousarray(small[:, :, channel : channel + 1]) for channel in range(3))
        else:
            raise CalibrationError(f"pictures have 1 or 3 channels, the network takes {model.num_in_ch}")
