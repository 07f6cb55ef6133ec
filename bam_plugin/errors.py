"""Named errors of bam_plugin.

Every error that bad input can cause derives from `BamError`, so that a program can catch one class and the command
line can turn it into a message and an exit code. A message says what was expected, what was found, where, and what
to do next.
"""

from __future__ import annotations


class BamError(Exception):
    """Base of all errors that bam_plugin raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 2


class MissingDependencyError(BamError):
    """A part of the package needs a library that the present installation lacks."""
