"""`bam test`: BasicSR's test pipeline with this package registered; takes BasicSR's own arguments."""

from __future__ import annotations

import argparse

from bam_plugin.commands.train import configure, pipeline_arguments

__all__ = ["configure", "run"]


def run(args: argparse.Namespace) -> int:
    """Test."""
    from bam_plugin.train.testing import main

    return main(pipeline_arguments(args))
