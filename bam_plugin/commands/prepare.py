"""`bam prepare`: make the folders and LMDBs that the option files name from data sets and benchmarks.

The results go to standard output. Progress, warnings and left-out images go to standard error. The exit code is 1 if an
image could not be read (the rest is prepared), and 2 if nothing could be done. After a kill the same command goes on.
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
    from bam_plugin.data.benchmarks import PreparedBenchmark
    from bam_plugin.data.prepare import PreparedSet

_EPILOG = """\
examples:
  bam prepare div2k --root DOWNLOADS                       datasets/DIV2K/DIV2K_train_HR_sub.lmdb, ...
  bam prepare folder --input PHOTOS --name photos          datasets/photos/photos_HR_sub.lmdb, ...
  bam prepare benchmark --root DIR_WITH_SET5_SET14_ETC     datasets/Set5/GTmod4, datasets/Set5/LRbicx4, ...
  bam prepare classic --root DIR_WITH_T91_BSDS400_ETC      datasets/classic/classic_HR.lmdb, ...
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
        ("classic", "T91, BSDS400, CC0_photos, CID22_photos, CLIC_half: training; DIV2K_valid_crop256: validation"),
    ):
        sub = kinds.add_parser(kind, help=summary, description=summary)
        if kind == "folder":
            sub.add_argument("--input", type=Path, nargs="+", required=True, help="folders of images")
            sub.add_argument("--name", required=True, help="name of the set")
        else:
            sub.add_argument("--root", type=Path, required=True, help="folder that holds the sets")
        default = {"div2k": "datasets/DIV2K", "folder": "datasets/NAME"}
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
        help="folders with benchmarks: warn of training images that are in them (default: the folders of the input "
        "and of the output, and datasets, where they hold benchmarks; give no folder to switch this off)",
    )
    parser.add_argument(
        "--drop-overlaps", action="store_true", help="leave out training images that are in a benchmark"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare; returns the exit code."""
    from bam_plugin.data import prepare

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    if args.workers is not None and args.workers < 1:
        raise BamError(f"--workers must be at least 1, found {args.workers}.")
    results: Sequence[PreparedSet | PreparedBenchmark]
    options: dict[str, Any] = {"scales": args.scales, "workers": args.workers, "progress": not args.quiet}
    if args.kind == "benchmark":
        results = prepare.prepare_benchmarks(args.root, args.output or Path("datasets"), **options)
    else:
        inputs = args.input if args.kind == "folder" else [args.root]
        names = {"div2k": "DIV2K", "folder": getattr(args, "name", ""), "classic": ""}
        output = args.output or Path("datasets") / names[args.kind]
        options |= {"store": args.store, "min_size": args.min_size, "drop_overlaps": args.drop_overlaps}
        options["benchmarks"] = _benchmark_folders(args.benchmarks, [output, output.parent, *inputs, Path("datasets")])
        if args.kind == "classic":
            results = prepare.prepare_classic(args.root, output, **options)
        else:
            options |= {"crop_size": None if args.whole else args.crop_size, "step": args.step}
            if args.kind == "div2k":
                results = prepare.prepare_div2k(args.root, output, **options)
            else:
                results = prepare.prepare_folders(inputs, output, name=args.name, **options)
    for result in results:
        sys.stdout.write(_describe(result))
        for kind, images in (("too small, skipped", result.left_out.skipped), ("FAILED", result.left_out.failed)):
            for path, reason in images:
                sys.stderr.write(f"{kind}: {path}: {reason}\n")
    return 1 if any(result.left_out.failed for result in results) else 0


def _describe(result: PreparedSet | PreparedBenchmark) -> str:
    from bam_plugin.data.prepare import PreparedSet

    if isinstance(result, PreparedSet):
        lines = [f"{result.pairs} pairs:", *(f"  {path}" for path in (result.hr, *result.lr.values()))]
        if result.overlaps:
            lines.append(f"  {len(result.overlaps)} images are in a benchmark too (named above)")
    else:
        scales = ", ".join(f"x{scale}" for scale in result.scales)
        lines = [f"{result.name}: {result.images} images, {scales}, in {result.folder}"]
    failed, skipped = result.left_out.failed, result.left_out.skipped
    if failed or skipped:
        lines.append(f"  left out: {len(failed)} unreadable, {len(skipped)} too small")
    return "\n".join(lines) + "\n"


def _benchmark_folders(given: Sequence[Path] | None, usual: Sequence[Path]) -> list[Path]:
    """The folders to look for benchmarks in: those `given`, else each of the `usual` ones that holds some."""
    if given is not None:
        return list(given)
    from bam_plugin.data.benchmarks import benchmark_places

    folders = benchmark_places(usual)
    if not folders:
        sys.stderr.write(
            "no benchmarks found beside the images: whether a training image is in one is not checked; name their "
            "folder with --benchmarks\n"
        )
    return folders
