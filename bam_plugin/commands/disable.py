"""`bam disable`: takes back `bam enable`."""

from __future__ import annotations

import argparse
import sys

from bam_plugin import hook


def configure(parser: argparse.ArgumentParser) -> None:
    """There are no arguments."""
    parser.epilog = "BasicSR is as it was before `bam enable`."


def run(args: argparse.Namespace) -> int:
    """Remove the start-up hook from the active environment."""
    state = "disabled" if hook.disable() else "was not enabled"
    sys.stdout.write(f"{state}: {hook.hook_file()}\n")
    return 0
