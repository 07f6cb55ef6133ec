"""`bam enable`: BasicSR's own train.py and test.py find bam_plugin, until `bam disable`."""

from __future__ import annotations

import argparse
import sys

from bam_plugin import hook


def configure(parser: argparse.ArgumentParser) -> None:
    """There are no arguments."""
    parser.epilog = "`bam train` and `bam test` do not need it."


def run(args: argparse.Namespace) -> int:
    """Install the start-up hook in the active environment."""
    state = "enabled" if hook.enable() else "was enabled already"
    sys.stdout.write(f"{state}: {hook.hook_file()}\n")
    return 0
