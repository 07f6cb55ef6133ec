"""Named errors of bam_plugin.

Every error that bad input can cause derives from `BamError`, so that a program can catch one class and the command
line can turn it into a message and an exit code. A message says what was expected, what was found, where, and what
to do next.
"""

from __future__ import annotations

TRAINING_LIBRARIES = ("torch", "torchvision", "basicsr", "msgspec", "lmdb", "tensorboard")
"""What only the extra `train` installs."""

# BasicSR's build imports Cython, NumPy and torch, which pip's isolated builds do not see.
INSTALL_TRAINING = (
    "pip install -U pip setuptools wheel cython numpy && pip install torch torchvision && "
    "pip install --no-build-isolation 'bam-plugin[train]'"
)
"""The command that installs them, in a fresh environment too."""


class BamError(Exception):
    """Base of all errors that bam_plugin raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 2


class MissingDependencyError(BamError):
    """A part of the package needs a library that the present installation lacks."""

    @classmethod
    def for_training(cls, library: str | None) -> MissingDependencyError:
        """The error for a missing `library` of the extra `train`, with the command that installs them all."""
        return cls(f"training, testing and converting need {library}, which is not installed; run: {INSTALL_TRAINING}")
