"""The `bam` command: one table of subcommands, each in its own module under `bam_plugin/commands/`.

A command module defines `configure(parser)` and `run(args) -> int`. Modules are imported only when their command is
called, so `bam upscale` never imports torch. Results go to standard output, progress and logs to standard error.
Exit codes: 0 good, 1 some inputs failed, 2 usage or bad input, 130 interrupted, 141 nobody reads the results.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bam_plugin import __version__
from bam_plugin.errors import TRAINING_LIBRARIES, BamError, MissingDependencyError

COMMANDS = {
    "train": "train a network from an option file (BasicSR's train pipeline)",
    "test": "test a network from an option file (BasicSR's test pipeline)",
    "options": "list, copy, expand and check option files",
    "profile": "count parameters, MACs, operations and packed size of a network",
    "optimizers": "list the optimizers that an option file can name",
    "prepare": "prepare training sets and benchmarks: LR images, sub-images, LMDBs",
    "bench": "measure how fast a packed file runs on this machine",
    "convert": "convert a training checkpoint to a bit-packed file",
    "quantize": "offer faster integer precisions in a packed file, with their measured cost",
    "inspect": "show what a packed file holds and verify its checksum",
    "upscale": "upscale pictures with a packed file",
    "serve": "a local page to drop pictures on, and a REST API",
    "compare": "show results side by side: a sheet with measured values, or a page with a divider to drag",
    "completion": "print a script that completes the words of bam in a shell",
    "run": "run a training script of BasicSR or of another project with this package",
}


_IMPORTING = ("train", "test", "options", "profile", "convert", "upscale", "compare")
"""Commands that can meet a network of the user's own, by its registered name."""


def build_parser(*chosen: str | None) -> argparse.ArgumentParser:
    """Make the parser; only the modules of the `chosen` commands are imported, and their arguments added."""
    parser = argparse.ArgumentParser(prog="bam", description="Binary super-resolution: train, convert, upscale.")
    parser.add_argument("--version", action="version", version=f"bam-plugin {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name in chosen:
            module = importlib.import_module(f"bam_plugin.commands.{name}")
            module.configure(subparser)
            if name in _IMPORTING:
                subparser.add_argument(
                    "--import",
                    dest="imports",
                    metavar="MODULE",
                    action="append",
                    default=[],
                    help="module or Python file that registers networks of your own; repeatable",
                )
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `bam` command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    if sys.stdout is None:  # started with `>&-`
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        try:
            args = build_parser(chosen).parse_args(argv)
            if getattr(args, "imports", None):
                from bam_plugin.toolbox.registration import import_by_name

                import_by_name(args.imports)
            code = args.run(args)
            sys.stdout.flush()  # here a full disk or a gone reader can still be told
            return code
        except ModuleNotFoundError as error:
            # Any other missing module is a fault of ours, which deserves its traceback.
            if (error.name or "").split(".")[0] not in TRAINING_LIBRARIES:
                raise
            raise MissingDependencyError.for_training(error.name) from error
    except BamError as error:
        sys.stderr.write(f"bam: {type(error).__name__}: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        # The reader of the results, such as `head`, has what it wanted. A program that SIGPIPE kills returns the same.
        _drop_output()
        return 141
    except OSError as error:
        # A file that is missing, a folder without permission, a full disk: the system's own words name it.
        sys.stderr.write(f"bam: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("bam: interrupted\n")
        return 130


def _drop_output() -> None:
    """Let standard output lead nowhere, so that the interpreter's last flush does not fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
