"""`bam train`: run BasicSR's training pipeline with this package registered, with BasicSR's own arguments."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the arguments of BasicSR's train.py (and test.py); `required`: without an option file there is no work."""
    parser.add_argument("-opt", required=required, metavar="FILE", help="option file (YAML)")
    parser.add_argument("--method", metavar="NAME", help="which of the file's methods to use")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="how processes start")
    parser.add_argument("--auto_resume", action="store_true", help="go on from the newest training state")
    parser.add_argument("--debug", action="store_true", help="log and validate often, under a name of its own")
    parser.add_argument("--local_rank", type=int, default=0, help="set by old launchers")
    parser.add_argument("--force_yml", nargs="+", metavar="KEY:KEY=VALUE", help="values that override the file's")


def pipeline_arguments(args: argparse.Namespace) -> list[str]:
    """The parsed arguments in the form that BasicSR's own parser reads."""
    argv = ["-opt", args.opt, "--launcher", args.launcher, "--local_rank", str(args.local_rank)]
    argv += ["--auto_resume"] * args.auto_resume + ["--debug"] * args.debug
    if args.method is not None:
        argv += ["--method", args.method]
    if args.force_yml:
        argv += ["--force_yml", *args.force_yml]
    return argv


def run(args: argparse.Namespace) -> int:
    """Train."""
    from bam_plugin.train.training import main

    return main(pipeline_arguments(args))
