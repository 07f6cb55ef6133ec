"""`bam run`: run a training script of BasicSR or of a project on top of it, with everything of this package."""

from __future__ import annotations

import argparse
import traceback


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments. All arguments after the script belong to the script."""
    parser.add_argument("script", help="Python file, such as basicsr/train.py in a clone of BasicSR")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script, such as -opt FILE")
    parser.epilog = "The same by one line in the script, before it imports basicsr: import bam_plugin"


def run(args: argparse.Namespace) -> int:
    """Run the script. Returns 1, with a traceback, for an error of the script that `bam` would put into one line."""
    from bam_plugin.train.scripts import run_script

    try:
        run_script(args.script, args.arguments)
    except OSError:
        traceback.print_exc()
        return 1
    return 0
