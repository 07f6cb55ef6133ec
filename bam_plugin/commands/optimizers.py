"""`bam optimizers`: list the values of `train.optim_g.type`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print one line per optimizer with its options and their defaults."""
    from bam_plugin.optim import KINDS, describe_optimizers

    infos = describe_optimizers()
    if args.json:
        # Defaults such as tensors or classes become text.
        sys.stdout.write(json.dumps([asdict(info) for info in infos], indent=2, default=str) + "\n")
        return 0
    for info in infos:
        options = ", ".join(f"{name}={value}" for name, value in info.defaults.items())
        sys.stdout.write(f"{info.name}\n    {info.description}\n    {options}\n")
    sys.stdout.write("\nKinds of parameters for lr_mult and rules:\n")
    for kind, text in KINDS.items():
        sys.stdout.write(f"    {kind:<10} {text}\n")
    return 0
