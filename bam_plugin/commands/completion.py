"""`bam completion`: a script that completes the words of `bam` in a shell."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bam_plugin.errors import MissingDependencyError, install_command

SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("IN", "OUT", "FILE", "DIR", "FOLDER")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shell", choices=SHELLS)
    parser.epilog = "Put it where your shell looks, such as ~/.local/share/bash-completion/completions/bam."


def run(args: argparse.Namespace) -> int:
    """Print the script for one shell."""
    try:
        shtab = importlib.import_module("shtab")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"bam completion needs shtab, which is not installed; run: {install_command('completion')}"
        ) from error
    cli = importlib.import_module("bam_plugin.cli")  # it imports the modules of commands, this one among them
    parser = cli.build_parser(*cli.COMMANDS)
    for action in _arguments(parser):
        if action.type is Path or action.metavar in _FILES or action.dest in ("file", "opt"):
            action.complete = shtab.FILE
    sys.stdout.write(shtab.complete(parser, args.shell) + "\n")
    return 0


def _arguments(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """All arguments of all commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _arguments(command)
        else:
            yield action
