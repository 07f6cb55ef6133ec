"""Named errors of bam_plugin.

Every error that bad input can cause derives from `BamError`, so that a program can catch one class and the command
line can turn it into a message and an exit code. A message says what was expected, what was found, where, and what
to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

TRAINING_LIBRARIES = ("torch", "torchvision", "basicsr", "msgspec", "lmdb", "tensorboard")
"""What only the extra `train` installs."""

# BasicSR's build imports Cython, NumPy and torch, which pip's isolated builds do not see.
INSTALL_TRAINING = (
    "pip install -U pip setuptools wheel cython numpy && pip install torch torchvision && "
    "pip install --no-build-isolation 'bam-plugin[train]'"
)
"""The command that installs them, in a fresh environment too."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was probably meant to be, or None."""
    by_lower = {candidate.lower().replace("-", "_"): candidate for candidate in names}
    wanted = name.lower().replace("-", "_")
    matches = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.6)
    # A short name that begins one valid name only (L1 for L1Loss) is too different in length for a close match.
    begun = [candidate for candidate in by_lower if len(wanted) > 1 and candidate.startswith(wanted)]
    if not matches and len(begun) == 1:
        matches = begun
    return by_lower[matches[0]] if matches else None


def suggest(name: str, names: Iterable[str], limit: int = 24) -> str:
    """`did you mean X?`, or the list of what is valid where nothing is near (shortened to `limit` names)."""
    names = sorted(names)
    near = nearest(name, names)
    if near is not None:
        return f"did you mean {near}?"
    if not names:
        return "nothing can be set here; remove it"
    listed = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"valid here: {listed}"


class BamError(Exception):
    """Base of all errors that bam_plugin raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 2


class MissingDependencyError(BamError):
    """A part of the package needs a library that the present installation lacks."""

    @classmethod
    def for_training(cls, library: str | None) -> MissingDependencyError:
        """The error for a missing `library` of the extra `train`, with the command that installs them all."""
        return cls(f"training, testing and converting need {library}, which is not installed; run: {INSTALL_TRAINING}")
