"""`bam test`: measure a packed file on benchmarks, or run BasicSR's test pipeline with BasicSR's arguments."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from bam_plugin.commands import train
from bam_plugin.errors import ArgumentsError
from bam_plugin.packed.precision import FLOAT, PRECISIONS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    packed = parser.add_argument_group("a packed file, without an option file")
    packed.add_argument("file", nargs="?", help="packed file or a network of the zoo, such as bsrn_light_x4")
    packed.add_argument("sets", nargs="*", metavar="SET", help="benchmarks: folders, or names such as Set5")
    packed.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write results.md, .csv and .json, too")
    packed.add_argument("-j", "--threads", type=int, help="threads to use (default: all processors)")
    packed.add_argument("--precision", choices=PRECISIONS, default=FLOAT, help="of the float layers (default fp32)")
    packed.add_argument("--json", action="store_true", help="print JSON")
    train.configure(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Test."""
    if (args.opt is None) == (args.file is None):
        raise ArgumentsError("give either a packed file and sets (bam test FILE Set5 Set14), or an option file (-opt)")
    if args.file is not None:
        return _run_packed(args)
    from bam_plugin.train.testing import main

    return main(train.pipeline_arguments(args))


def _run_packed(args: argparse.Namespace) -> int:
    """PSNR and SSIM of a packed file on each set, beside the paper's values where they are known."""
    from bam_plugin.data.evaluation import evaluate
    from bam_plugin.data.image_sets import find_set
    from bam_plugin.packed.format import read_model
    from bam_plugin.packed.zoo import find_model
    from bam_plugin.train.report import report_markdown, write_report

    if not args.sets:
        raise ArgumentsError(f"name the sets to test {args.file} on, such as Set5 Set14")
    folders = [find_set(name) for name in args.sets]  # all are found before the first is measured
    path = find_model(args.file)
    model = read_model(path)
    results = []
    for folder in folders:
        sys.stderr.write(f"testing on {folder}\n")
        results.append(evaluate(model, folder, threads=args.threads, precision=args.precision))
    name = path.name.partition(".")[0]
    text = report_markdown(results, name=name, scale=model.scale)
    if args.output is not None:
        write_report(results, args.output, name=name, scale=model.scale)
    sys.stdout.write(json.dumps([asdict(result) for result in results], indent=2) + "\n" if args.json else text)
    return 0
