"""Which names are clips, and the container that each ending means. Needs no FFmpeg."""

from __future__ import annotations

import os
from pathlib import Path

from bam_plugin.upscale.video.errors import ContainerError

FORMATS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".mpg": "mpeg",
    ".nut": "nut",
}
"""Ending of a clip's name -> FFmpeg's name of the container."""


def is_clip(name: str | os.PathLike) -> bool:
    """Whether a file name ends as one of a clip does."""
    return Path(name).suffix.lower() in FORMATS


def container_format(destination: Path) -> str:
    """FFmpeg's name of the container that the ending of a file name means. Raises ContainerError."""
    format = FORMATS.get(destination.suffix.lower())
    if format is None:
        raise ContainerError(f"{destination}: no ending of a clip; use one of {' '.join(sorted(FORMATS))}")
    return format
