"""Named errors of bam_plugin.

Every error that bad input can cause derives from `BamError`. So a program can catch one class, and the command line can
turn it into a message and an exit code. A message says what was expected, what was found, where, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

TRAINING_LIBRARIES = ("torch", "torchvision", "basicsr", "msgspec", "lmdb", "tensorboard")
"""What only the extra `train` installs."""


def install_command(extra: str) -> str:
    """The command that installs the extra `extra` of the package, in a fresh environment too."""
    if extra == "train":
        # BasicSR's build imports Cython, NumPy and torch, which pip's isolated builds do not see.
        return (
            "pip install -U pip setuptools wheel cython numpy && pip install torch torchvision && "
            "pip install --no-build-isolation 'bam-plugin[train]'"
        )
    return f"pip install 'bam-plugin[{extra}]'"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` probably means, or None."""
    by_lower = {candidate.lower().replace("-", "_"): candidate for candidate in names}
    wanted = name.lower().replace("-", "_")
    matches = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.6)
    # A short name that begins only one valid name (L1 for L1Loss) is too different in length for a close match.
    begun = [candidate for candidate in by_lower if len(wanted) > 1 and candidate.startswith(wanted)]
    if not matches and len(begun) == 1:
        matches = begun
    return by_lower[matches[0]] if matches else None


def suggest(name: str, names: Iterable[str], limit: int = 24) -> str:
    """`did you mean X?`, or a list of at most `limit` valid names if none is near."""
    names = sorted(names)
    near = nearest(name, names)
    if near is not None:
        return f"did you mean {near}?"
    if not names:
        return "nothing is valid here; remove it"
    listed = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"valid here: {listed}"


class BamError(Exception):
    """Base of all errors that bam_plugin raises on purpose. The command line returns `exit_code` for it."""

    exit_code = 2


class ArgumentsError(BamError):
    """The arguments of a command do not go together."""


class MissingDependencyError(BamError):
    """A part of the package needs a library that the present installation lacks."""

    @classmethod
    def for_training(cls, library: str | None) -> MissingDependencyError:
        """The error for a missing `library` of the extra `train`, with the command that installs them all."""
        return cls(
            f"training, testing and converting need {library}, which is not installed; run: {install_command('train')}"
        )
