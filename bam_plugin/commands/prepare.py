"""`bam prepare`: data sets and benchmarks into the folders and LMDBs that the option files name.

What was written goes to standard output; progress, warnings and images left out go to standard error. Exit code 1
when an image could not be read (the rest is prepared), 2 when nothing could be done. A killed run is resumed by
repeating it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_plugin.errors import BamError

if TYPE_CHECKING:
    from bam_plugin.data.prepare import PreparedSet
    from bam_plugin.data.runner import LeftOut

_EPILOG = """\
examples:
  bam prepare div2k --root DOWNLOADS                       datasets/DIV2K/DIV2K_train_HR_sub.lmdb, ...
  bam prepare folder --input PHOTOS --name photos          datasets/photos/photos_HR_sub.lmdb, ...
  bam prepare benchmark --root DIR_WITH_SET5_SET14_ETC     datasets/Set5/GTmod4, datasets/Set5/LRbicx4, ...
  bam prepare classic --root DIR_WITH_T91_BSDS400_ETC      datasets/classic/train_HR.lmdb, ...
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bam prepare`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, summary in (
        ("div2k", "DIV2K as it ships: DIV2K_train_HR, DIV2K_valid_HR, and the LR folders when present"),
        ("folder", "any folders of images as a training set"),
        ("benchmark", "Set5, Set14, B100, Urban100, Manga109: GTmodS and LRbicxS folders"),
        ("classic", "T91, BSDS400 and CC0_photos as a training set, DIV2K_valid_crop256 for validation"),
    ):
        sub = kinds.add_parser(kind, help=summary, description=summary)
        if kind == "folder":
            sub.add_argument("--input", type=Path, nargs="+", required=True, help="folders of images")
            sub.add_argument("--name", required=True, help="name of the set")
        else:
            sub.add_argument("--root", type=Path, required=True, help="folder that holds the sets")
        default = {"div2k": "datasets/DIV2K", "folder": "datasets/NAME", "classic": "datasets/classic"}
        place = default.get(kind, "datasets")
        sub.add_argument("--output", type=Path, help=f"where the results go (default: {place})")
        sub.add_argument("--scales", type=int, nargs="+", default=[2, 3, 4], help="default: 2 3 4")
        sub.add_argument("--workers", type=int, help="threads (default: one per core)")
        sub.add_argument("--quiet", action="store_true", help="no progress bar")
        if kind != "benchmark":
            _configure_training(sub, cut=kind != "classic")


def _configure_training(parser: argparse.ArgumentParser, *, cut: bool) -> None:
    parser.add_argument("--store", choices=("lmdb", "folder"), default="lmdb", help="default: lmdb")
    parser.add_argument("--min-size", type=int, default=0, help="skip images with a shorter side than this (HR pixels)")
    if cut:
        parser.add_argument("--crop-size", type=int, default=480, help="of the sub-images, HR pixels (default: 480)")
        parser.add_argument("--step", type=int, default=240, help="from one to the next, HR pixels (default: 240)")
        parser.add_argument("--whole", action="store_true", help="keep whole images, cut no sub-images")
    parser.add_argument(
        "--benchmarks",
        type=Path,
        nargs="*",
        help="folders with benchmarks: warn of training images that are in them (default: the output's folder, "
        "--root and ./datasets, where they hold benchmarks; give no folder to switch this off)",
    )
    parser.add_argument(
        "--drop-overlaps", action="store_true", help="leave out training images that are in a benchmark"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    if args.workers is not None and args.workers < 1:
        raise BamError(f"--workers must be at least 1, found {args.workers}.")
    if args.kind == "benchmark":
        return _run_benchmark(args)
    from bam_plugin.data.images import list_images
    from bam_plugin.data.prepare import prepare_classic, prepare_div2k, prepare_training_set

    options: dict[str, Any] = {
        "scales": args.scales,
        "store": args.store,
        "min_size": args.min_size,
        "drop_overlaps": args.drop_overlaps,
        "workers": args.workers,
        "progress": not args.quiet,
    }
    if args.kind != "classic":
        options |= {"crop_size": None if args.whole else args.crop_size, "step": args.step}
    if args.kind == "folder":
        output = args.output or Path("datasets") / args.name
        paths = [path for folder in args.input for path in list_images(folder)]
        options["benchmarks"] = _benchmark_folders(args.benchmarks, [output.parent, *args.input])
        sets = [prepare_training_set(paths, output, name=args.name, **options)]
    else:
        output = args.output or Path("datasets") / {"div2k": "DIV2K"}.get(args.kind, args.kind)
        options["benchmarks"] = _benchmark_folders(args.benchmarks, [output.parent, args.root])
        sets = (prepare_div2k if args.kind == "div2k" else prepare_classic)(args.root, output, **options)
    for each in sets:
        _print_set(each)
    return 1 if any(each.left_out.failed for each in sets) else 0


def _run_benchmark(args: argparse.Namespace) -> int:
    from bam_plugin.data.benchmarks import BENCHMARKS, find_benchmarks, prepare_benchmark
    from bam_plugin.data.storage import AlreadyPreparedError

    output = args.output or Path("datasets")
    found = find_benchmarks(args.root)
    if not found:
        raise BamError(f"expected folders named {', '.join(BENCHMARKS)} in {args.root}, found none of them.")
    failed = False
    for name, folder in found.items():
        try:
            result = prepare_benchmark(
                folder, output, name=name, scales=args.scales, workers=args.workers, progress=not args.quiet
            )
        except AlreadyPreparedError as error:
            sys.stdout.write(f"{name}: {error}\n")
            continue
        except BamError as error:
            # One set that cannot be prepared does not keep the others back.
            sys.stderr.write(f"{name}: {error}\n")
            failed = True
            continue
        scales = ", ".join(f"x{scale}" for scale in result.scales)
        sys.stdout.write(f"{name}: {result.images} images, {scales}, in {result.folder}\n")
        _report_left_out(result.left_out)
        failed = failed or bool(result.left_out.failed)
    for name in BENCHMARKS:
        if name not in found:
            sys.stdout.write(f"{name}: not found in {args.root}, skipped\n")
    return 1 if failed else 0


def _benchmark_folders(given: Sequence[Path] | None, usual: Sequence[Path]) -> list[Path]:
    """The folders to look for benchmarks in: those `given`, else each of the `usual` ones that holds some."""
    if given is not None:
        return list(given)
    from bam_plugin.data.benchmarks import find_benchmarks

    unique = {path.resolve(): path for path in (*usual, Path("datasets")) if path.is_dir()}
    return [path for path in unique.values() if find_benchmarks(path)]


def _print_set(prepared: PreparedSet) -> None:
    sys.stdout.write(f"{prepared.pairs} pairs:\n")
    for path in (prepared.hr, *prepared.lr.values()):
        sys.stdout.write(f"  {path}\n")
    if prepared.overlaps:
        sys.stdout.write(f"  {len(prepared.overlaps)} training images are in a benchmark too (listed above)\n")
    _report_left_out(prepared.left_out)


def _report_left_out(left_out: LeftOut) -> None:
    for kind, images in (("too small, skipped", left_out.skipped), ("FAILED", left_out.failed)):
        for path, reason in images:
            sys.stderr.write(f"{kind}: {path}: {reason}\n")
    if left_out.failed or left_out.skipped:
        sys.stdout.write(f"  left out: {len(left_out.failed)} unreadable, {len(left_out.skipped)} too small\n")
