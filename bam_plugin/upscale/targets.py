"""The size of a result, and the check that its file is not its source."""

from __future__ import annotations

from pathlib import Path

from bam_plugin.errors import BamError


class OverwriteError(BamError):
    """The result would replace an input."""


def target_size(size: tuple[int, ...], scale: float) -> tuple[int, int]:
    """(H, W) enlarged by `scale`, rounded, at least 1 x 1."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def refuse_same_file(source: Path, destination: Path) -> None:
    """Raise `OverwriteError` if `destination` is the file of `source`, also by another name or link."""
    try:
        same = destination.exists() and source.exists() and source.samefile(destination)
    except OSError:
        same = False
    if same:
        raise OverwriteError(f"{destination}: is the input itself; choose another folder or a --suffix")
