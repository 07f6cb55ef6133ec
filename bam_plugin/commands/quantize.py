"""`bam quantize`: offer integer precisions of the float layers in a packed file, with what they cost.

Ranges of the activations come from the pictures of `--calibrate`, the cost from benchmarks, which are never calibrated
on: mean Y-PSNR of the 8-bit results in fp32 less that at the precision. A file takes only what costs less than MAX_COST
on every benchmark; it is replaced whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bam_plugin.data.benchmarks import BENCHMARKS, find_hr_images
from bam_plugin.data.images import list_images, read_image
from bam_plugin.data.pairs import downscale
from bam_plugin.engine.calibrate import largest_activations, offered_ranges
from bam_plugin.errors import BamError
from bam_plugin.packed.format import PackedModel, read_packed, write_packed
from bam_plugin.packed.integers import with_integers
from bam_plugin.packed.precision import FIELD, INTEGERS, MAX_COST, Offer
from bam_plugin.packed.zoo import find_model
from bam_plugin.pictures.imresize import mod_crop
from bam_plugin.upscale.upscaler import Upscaler

MAX_IMAGES = 64  # for calibration: spread over the folder's files
CALIBRATION_SIDE = 128  # pixels of the small pictures' middle that are used

_log = logging.getLogger(__name__)


class CalibrationError(BamError):
    """The pictures for calibration or the benchmarks cannot serve."""


class PrecisionCostError(BamError):
    """A precision costs too much to be offered."""

    exit_code = 1


@dataclass(frozen=True)
class Benchmark:
    """Pairs of a benchmark: 8-bit small pictures (RGB or grey) and their originals (BGR or grey)."""

    name: str
    pairs: list[tuple[np.ndarray, np.ndarray]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("file", help="packed file, to which the precisions are added")
    add(
        "--calibrate", type=Path, required=True, metavar="FOLDER", help="pictures to take the ranges from; no benchmark"
    )
    add("--benchmarks", type=Path, nargs="+", required=True, metavar="FOLDER", help="sets to measure the cost on")
    add("--precision", nargs="+", choices=list(INTEGERS), default=list(INTEGERS), help="default: all of them")
    add("-o", "--output", type=Path, help="write here and leave FILE as it is")
    add("--force", action="store_true", help="replace an output file that exists")
    add("-j", "--threads", type=int, help="threads to use (default: all processors)")
    add("--dry-run", action="store_true", help="measure, but write nothing")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Calibrate, measure, write what is cheap enough, and report; 1 when a precision was refused."""
    # The measure is BasicSR's: where it is missing, that is told before the long calibration.
    from bam_plugin.data.metrics import calculate_psnr_y

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    source = find_model(args.file)
    if source != Path(args.file) and args.output is None and not args.dry_run:
        raise CalibrationError(f"{args.file} comes with the package and stays as it is; give -o FILE")
    model = read_packed(source)
    if args.output is not None and args.output.exists() and not (args.force or args.dry_run):
        raise CalibrationError(f"{args.output} exists; choose another name or give --force")
    _refuse_benchmarks(args.calibrate, args.benchmarks)
    paths = list_images(args.calibrate)
    paths = paths[:: -(-len(paths) // MAX_IMAGES)]
    calibration = {"name": args.calibrate.resolve().name, "images": len(paths)}
    _log.info("calibrating on %d pictures of %s", len(paths), args.calibrate)
    largest = largest_activations(model, _small_pictures(paths, model), threads=args.threads)
    benchmarks = [_read_benchmark(folder, model.scale) for folder in args.benchmarks]
    before = _mean_psnr(model, benchmarks, calculate_psnr_y, args.threads)
    rows = []
    offers: dict[str, object] = {}
    for name in args.precision:
        offer = Offer(INTEGERS[name], offered_ranges(largest, INTEGERS[name]), {}, calibration)
        _log.info("measuring %s on %s", name, ", ".join(before))
        after = _mean_psnr(with_integers(model, offer), benchmarks, calculate_psnr_y, args.threads)
        cost = {key: round(before[key] - after[key], 4) for key in before}
        offered = all(value < MAX_COST for value in cost.values())
        rows.append({"precision": name, "psnr": after, "cost_db": cost, "offered": offered})
        if offered:
            offers[name] = replace(offer, cost=cost).facts()
    earlier = model.metadata.get(FIELD, {})
    # An offer of another measurement goes, even where nothing takes its place.
    kept = {name: offer for name, offer in earlier.items() if name not in args.precision}  # type: ignore[union-attr]
    section = {**kept, **offers}
    if (section != earlier or args.output is not None) and not args.dry_run:
        facts = {key: value for key, value in model.metadata.items() if key != FIELD}
        if section:
            facts[FIELD] = section
        write_packed(replace(model, metadata=facts), args.output or source)
    _report(args, rows, before, list(largest))
    refused = [row for row in rows if not row["offered"]]
    if refused:
        figures = "; ".join(f"{row['precision']}: {_costs(row['cost_db'])}" for row in refused)
        raise PrecisionCostError(
            f"not offered, since less than {MAX_COST} dB on every benchmark is asked for: {figures}; "
            "try other pictures for calibration, or int16"
        )
    return 0


def _refuse_benchmarks(calibrate: Path, benchmarks: list[Path]) -> None:
    """Ranges taken from the pictures that measure the cost would make it look smaller than it is."""
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


def _read_benchmark(folder: Path, scale: int) -> Benchmark:
    pairs = []
    for path in find_hr_images(folder).values():
        original = mod_crop(read_image(path, keep_grey=True), scale)
        if 0 in original.shape:
            raise CalibrationError(f"{path} is too small to be made {scale}x smaller")
        small = downscale(original, scale)
        pairs.append((np.ascontiguousarray(small[..., ::-1] if small.ndim == 3 else small), original))
    return Benchmark(folder.resolve().name, pairs)


def _mean_psnr(
    model: PackedModel, benchmarks: list[Benchmark], measure: Callable[..., float], threads: int | None
) -> dict[str, float]:
    """Mean Y-PSNR of each benchmark."""
    upscaler = Upscaler(model, threads=threads)
    means = {}
    for benchmark in benchmarks:
        values = []
        for small, original in benchmark.pairs:
            large = upscaler.upscale(small)
            result = large[:, :, ::-1] if large.ndim == 3 else large
            values.append(measure(result, original, crop_border=model.scale))
        means[benchmark.name] = float(np.mean(values))
    return means


def _costs(costs: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:+.4f} dB" for name, value in costs.items())


def _report(args: argparse.Namespace, rows: list[dict], before: dict[str, float], convs: list[str]) -> None:
    if args.json:
        document = {"file": str(args.output or args.file), "convolutions": convs, "fp32": before, "precisions": rows}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    lines = [f"fp32: {', '.join(f'{name} {value:.3f} dB' for name, value in before.items())}"]
    lines += [
        f"{row['precision']}: {_costs(row['cost_db'])}  {'offered' if row['offered'] else 'refused'}" for row in rows
    ]
    sys.stdout.write("\n".join(lines) + "\n")
