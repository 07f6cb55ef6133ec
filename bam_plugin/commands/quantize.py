"""`bam quantize`: offer integer precisions of the float layers in a packed file, with their cost."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bam_plugin.errors import BamError
from bam_plugin.packed.precision import INTEGERS, MAX_COST

if TYPE_CHECKING:
    from bam_plugin.conversion.quantization import Quantization


class PrecisionCostError(BamError):
    """A precision costs too much, so the file does not offer it."""

    exit_code = 1


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
    """Calibrate, measure, write the offers that are cheap enough, and report. Returns 1 if a precision was refused."""
    from bam_plugin.conversion.quantization import quantize

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    found = quantize(
        args.file,
        calibrate=args.calibrate,
        benchmarks=args.benchmarks,
        precisions=args.precision,
        output=args.output,
        overwrite=args.force,
        write=not args.dry_run,
        threads=args.threads,
    )
    sys.stdout.write(_json(args, found) if args.json else _table(found))
    if refused := [row for row in found.precisions if not row.offered]:
        figures = "; ".join(f"{row.precision}: {_costs(row.cost_db)}" for row in refused)
        raise PrecisionCostError(
            f"not offered, since less than {MAX_COST} dB on every benchmark is asked for: {figures}; "
            "try other pictures for calibration, or int16"
        )
    return 0


def _costs(costs: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:+.4f} dB" for name, value in costs.items())


def _json(args: argparse.Namespace, found: Quantization) -> str:
    document = {"file": str(args.output or args.file), "convolutions": found.convolutions, "fp32": found.fp32}
    return json.dumps({**document, "precisions": [asdict(row) for row in found.precisions]}, indent=2) + "\n"


def _table(found: Quantization) -> str:
    lines = [f"fp32: {', '.join(f'{name} {value:.3f} dB' for name, value in found.fp32.items())}"]
    lines += [
        f"{row.precision}: {_costs(row.cost_db)}  {'offered' if row.offered else 'refused'}" for row in found.precisions
    ]
    return "\n".join(lines) + "\n"
