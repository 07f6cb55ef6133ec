"""Clips of a command line: where each result goes, and how far the work is in frames a second."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from bam_plugin.errors import MissingDependencyError, install_command
from bam_plugin.upscale.plan import InputError
from bam_plugin.upscale.tolerant_stream import TolerantStream
from bam_plugin.upscale.video.containers import container_format, is_clip

_LINE_SECONDS = 5.0  # between two lines where no line can move


@dataclass(frozen=True)
class ClipOutcome:
    """What became of one clip: its VideoResult, or the error that kept it from it."""

    source: Path
    destination: Path
    result: Any = None
    error: Exception | None = None


def plan_clips(
    inputs: Sequence[str | os.PathLike], output: Path | None, *, scale: float, suffix: str = ""
) -> list[tuple[Path, Path]]:
    """(source, destination) of each clip; `output` is a file for one clip, else a folder.

    Without an output each result lies beside its clip, with `suffix` (`_x4` for a scale of 4) behind its name.

    Raises InputError for a source that is not there, for pictures among clips, and for two results of one name.
    """
    sources = [Path(each) for each in inputs]
    if others := [each for each in sources if not is_clip(each)]:
        raise InputError(f"{others[0]}: is no clip; upscale pictures and clips in two calls")
    for source in sources:
        if not source.is_file():
            raise InputError(f"{source}: there is no such file")
    if output is None:
        suffix = suffix or f"_x{scale:g}"
        return [(each, each.with_name(f"{each.stem}{suffix}{each.suffix}")) for each in sources]
    if is_clip(output) and not output.is_dir():
        if len(sources) > 1:
            raise InputError(f"{output}: is one file, but there are {len(sources)} inputs; give a folder")
        return [(sources[0], output)]
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, a folder or a clip's name was expected")
    planned = [(each, output / f"{each.stem}{suffix}{each.suffix}") for each in sources]
    if len({destination for _, destination in planned}) < len(planned):
        raise InputError("two of the clips have one name; give them folders of their own")
    for _, destination in planned:
        container_format(destination)
    return planned


def upscale_clips(
    upscaler: Any, planned: Sequence[tuple[Path, Path]], *, stream: TextIO | TolerantStream, quiet: bool, **options: Any
) -> Iterator[ClipOutcome]:
    """Upscale one clip after the other; a bad one does not stop the rest. `options` are those of `upscale_video`.

    How far the work is goes to `stream`. Raises MissingDependencyError where PyAV is missing.
    """
    try:
        video = importlib.import_module("bam_plugin.upscale.video.pipeline")
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise MissingDependencyError(
            f"clips need PyAV, which is not installed; run: {install_command('video')}"
        ) from error
    for source, destination in planned:
        with FrameProgress(source.name, stream=stream, quiet=quiet) as progress:
            try:
                result = video.upscale_video(upscaler, source, destination, progress=progress.show, **options)
            except Exception as error:  # whatever it is, the next clip may be fine
                outcome = ClipOutcome(source, destination, error=error)
            else:
                outcome = ClipOutcome(source, destination, result=result)
        yield outcome


class FrameProgress:
    """Frames done, frames a second and the time left: a moving line on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, *, stream: TextIO | TolerantStream, quiet: bool):
        self._name, self._stream, self._quiet = name, stream, quiet
        moving = stream.isatty() and not quiet
        self._bar = tqdm(desc=name, unit=" frames", file=stream, disable=not moving, dynamic_ncols=True, leave=False)
        self._begun: tuple[float, int] | None = None
        self._written = time.perf_counter()

    def __enter__(self) -> FrameProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, done: int, total: int) -> None:
        """So many frames are done, of so many (0: not known)."""
        now = time.perf_counter()
        if self._begun is None:  # frames of an earlier run do not count for the rate
            self._begun = now, done - 1
            self._bar.initial = done - 1
        self._bar.total = total or None
        self._bar.update(done - self._bar.n)
        if self._bar.disable and not self._quiet and now - self._written > _LINE_SECONDS:
            self._written = now
            seconds, before = now - self._begun[0], self._begun[1]
            rate = (done - before) / seconds if seconds > 0 else 0.0
            left = tqdm.format_interval((total - done) / rate) if rate > 0 and total else "?"
            self._stream.write(f"{self._name}  {done}/{total or '?'} frames, {rate:.1f} fps, ETA {left}\n")
