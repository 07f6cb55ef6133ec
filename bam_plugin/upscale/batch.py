"""Upscale many pictures: the function of `bam upscale`, and a class that reports each picture.

>>> from bam_plugin.upscale import upscale_files
>>> results = upscale_files(["holiday/", "scan.tif"], "large/", recursive=True)
>>> [str(result.error) for result in results if result.error]

One bad picture does not stop the rest. A result appears when it is complete, so a stopped batch can start again with
`skip_existing`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bam_plugin.files import remove_abandoned
from bam_plugin.pictures.read import MAX_PIXELS
from bam_plugin.pictures.write import DEFAULT_QUALITY
from bam_plugin.upscale.plan import PlannedPicture, find_inputs, plan_pictures
from bam_plugin.upscale.targets import target_size
from bam_plugin.upscale.upscaler import Upscaler

DONE, PLANNED, SKIPPED, FAILED = "done", "planned", "skipped", "failed"
"""States of a picture. `planned` is that of a dry run."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileResult:
    """The result of one picture of a batch. Sizes are (width, height) in pixels, time is in seconds."""

    source: Path
    destination: Path | None
    """None if the picture failed before its result had a name."""
    status: str
    """done, planned (dry run), skipped (its result is there) or failed."""
    source_size: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    tiles: int | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    error: Exception | None = None


class Progress(Protocol):
    """Takes the progress of a batch."""

    def picture(self, name: str, pixels: int) -> AbstractContextManager[None]:
        """A block for the work at the picture `name` of `pixels` input pixels."""
        ...

    def advance(self, pixels: int) -> None:
        """Count more input pixels as done."""
        ...


def upscale_files(
    inputs: Sequence[str | os.PathLike] | str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[FileResult]:
    """Upscale files, folders and patterns. Returns the result of each picture, in order.

    `options` are those of `UpscaleBatch`: model, scale, tile, format, quality, suffix, recursive, skip_existing, ...;
    `progress` gets each picture and the pixels that are done. Raises `BamError` if no picture can start, because of a
    wrong path, model or output. The fault of a single picture is in its `FileResult.error`.
    """
    batch = UpscaleBatch(inputs, output, **options)
    batch.remove_abandoned()
    return list(batch.run(progress))


class UpscaleBatch:
    """Planned pictures: their headers are read and their results have names, but none has begun."""

    upscaler: Upscaler
    scale: float
    pictures: list[PlannedPicture]

    def __init__(
        self,
        inputs: Sequence[str | os.PathLike] | str | os.PathLike,
        output: str | os.PathLike | None = None,
        *,
        model: Upscaler | str | os.PathLike | None = None,
        scale: float | None = None,
        tile: int | None = None,
        format: str = "auto",
        quality: int = DEFAULT_QUALITY,
        suffix: str = "",
        recursive: bool = False,
        skip_existing: bool = False,
        dry_run: bool = False,
        max_pixels: int = MAX_PIXELS,
        **options: Any,
    ):
        """Plan a batch.

        Args:
            inputs: files, folders, glob patterns; a folder gives the pictures in it, by their name ending.
            output: a folder, or for a single picture a file name. None: beside each input, with a suffix.
            model: an `Upscaler`, a packed file, or the name of a shipped network; the shipped one by default.
            scale: magnification, above 0 and at most 16; the network's own by default.
            tile: edge of a tile in input pixels, 0 for none, None to choose by the memory at hand.
            format: "auto" (as the picture came where that can hold the result, else PNG) or a format's name.
            quality: 1..100, for formats that lose detail.
            suffix: text put behind each result's name; without an output `_x4` for a scale of 4, and so on.
            recursive: look into the folders of a folder, and keep their tree.
            skip_existing: leave out pictures whose result is there.
            dry_run: write nothing.
            max_pixels: larger pictures are refused before they are decoded.
            options: `isa`, `threads`, `precision` of the `Upscaler`, where `model` is none.

        Raises `BamError` for a wrong path, model or output. A faulty picture is planned with its error and does not
        stop the others.
        """
        names = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
        output = None if output is None else Path(output)
        # It comes before the network is read, because a wrong path is the likeliest mistake.
        found = find_inputs([os.fspath(name) for name in names], output=output, recursive=recursive)
        self.upscaler = model if isinstance(model, Upscaler) else Upscaler(model, scale=scale, **options)
        self.scale = self.upscaler.scale if scale is None else scale
        self.pictures = plan_pictures(
            found, output=output, scale=self.scale, format=format, suffix=suffix, max_pixels=max_pixels
        )
        self._skip_existing, self._dry_run = skip_existing, dry_run
        self._options = {"scale": self.scale, "tile": tile, "quality": quality, "max_pixels": max_pixels}

    @property
    def pixels(self) -> int:
        """Input pixels of all pictures that can be read."""
        return sum(picture.pixels for picture in self.pictures)

    def remove_abandoned(self) -> list[Path]:
        """Remove unfinished files of killed runs from the folders of the results, and return their paths."""
        if self._dry_run:
            return []
        folders = {picture.destination.parent for picture in self.pictures if picture.destination is not None}
        return [path for folder in sorted(folders) for path in remove_abandoned(folder)]

    def run(self, progress: Progress | None = None) -> Iterator[FileResult]:
        """Work at one picture after the other and yield its result."""
        for picture in self.pictures:
            with progress.picture(picture.source.name, picture.pixels) if progress else nullcontext():
                result = self._result(picture, progress)
            yield result

    def _result(self, picture: PlannedPicture, progress: Progress | None) -> FileResult:
        try:
            return self._outcome(picture, progress)
        except Exception as error:  # whatever it is, the next picture may be fine
            _log.info("%s failed", picture.source, exc_info=True)
            return FileResult(picture.source, picture.destination, FAILED, error=error)

    def _outcome(self, picture: PlannedPicture, progress: Progress | None) -> FileResult:
        if picture.error is not None:
            raise picture.error
        assert picture.destination is not None and picture.info is not None  # as in every one without an error
        if self._skip_existing and picture.destination.exists():
            return FileResult(picture.source, picture.destination, SKIPPED)
        if self._dry_run:
            size = (picture.info.width, picture.info.height)
            height, width = target_size(size[::-1], self.scale)
            return FileResult(picture.source, picture.destination, PLANNED, source_size=size, size=(width, height))
        done = self.upscaler.upscale_file(
            picture.source, picture.destination, progress=progress.advance if progress else None, **self._options
        )
        return FileResult(
            picture.source,
            picture.destination,
            DONE,
            source_size=done.source_size,
            size=done.size,
            tiles=done.tiles,
            seconds=done.seconds,
            notes=done.notes,
        )
