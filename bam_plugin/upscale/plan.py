"""Plan which files are upscaled, and the names of the results.

Inputs are files, folders and patterns. A folder keeps its tree. Two inputs with the same result, and a result that
would replace an input, are refused by name before anything is computed.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bam_plugin.errors import BamError
from bam_plugin.pictures.formats import ENDINGS, written_endings
from bam_plugin.pictures.read import PictureInfo, probe_picture
from bam_plugin.pictures.write import automatic_format, encoder_of, format_named, format_of_name
from bam_plugin.upscale.targets import OverwriteError, target_size


class InputError(BamError):
    """The inputs or the output as a whole are wrong, and nothing was started."""


class NameClashError(BamError):
    """Two inputs have the same result file."""


@dataclass(frozen=True)
class InputFile:
    """An input file, and its path relative to the folder or pattern that it was found by."""

    path: Path
    relative: Path
    named: bool = False
    """Whether the user named it, and no folder or pattern gave it."""


@dataclass(frozen=True)
class PlannedPicture:
    """One picture: its source and its result, or the error for which it does not start."""

    source: Path
    destination: Path | None = None
    info: PictureInfo | None = None
    error: BamError | None = None

    @property
    def pixels(self) -> int:
        """Input pixels by the header, those of all frames where the result has them; 0 where it cannot be read."""
        if self.info is None or self.destination is None:
            return 0
        frames = self.info.frames if encoder_of(format_of_name(self.destination)).animated else 1
        return self.info.width * self.info.height * frames


def find_inputs(inputs: Sequence[str], *, output: Path | None, recursive: bool = False) -> list[InputFile]:
    """List the files that `inputs` (files, folders, glob patterns) name, sorted, each once.

    Folders give the files with a picture's name ending; hidden files (unfinished results among them) are passed over,
    and so is the folder `output` where it lies inside. Raises `InputError` for an input that names nothing.
    """
    found: dict[str, InputFile] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            sources = _in_folder(path, output, recursive)
            if not sources:
                hint = "" if recursive else "; --recursive looks into its folders"
                raise InputError(f"{path}: the folder holds no pictures ({' '.join(sorted(ENDINGS))}){hint}")
        elif path.exists():
            sources = [InputFile(path, Path(path.name), named=True)]
        elif glob.has_magic(name):
            sources = _by_pattern(name)
            if not sources:
                raise InputError(f"{name}: no file matches the pattern")
        else:
            raise InputError(f"{path}: there is no such file or folder")
        for source in sources:
            found.setdefault(os.path.realpath(source.path), source)
    return list(found.values())


def plan_pictures(
    sources: Sequence[InputFile],
    *,
    output: Path | None,
    scale: float,
    format: str = "auto",
    suffix: str = "",
    max_pixels: int,
) -> list[PlannedPicture]:
    """Read each picture's header and name its result.

    `output` is a file when its name ends like a picture and there is one source, else a folder. Without an output the
    results lie beside their sources, with `suffix` (`_x4` for a scale of 4) behind their names; what an earlier run has
    left there is no source of this one, unless it is named itself. A faulty picture is planned with an
    error and does not stop the others. Raises `InputError` for an output that contradicts the rest.
    """
    if output is None:
        suffix = suffix or f"_x{scale:g}"
        sources = _without_results(sources, suffix)
    to_file = output if output is not None and _is_file_name(output, sources) else None
    if to_file is not None and format not in ("auto", format_of_name(to_file).name):
        raise InputError(f"{output}: the name asks for another format than --ext {format}; leave one of them out")
    inputs = {os.path.realpath(source.path) for source in sources}
    taken: dict[str, Path] = {}
    planned = []
    for source in sources:
        try:
            info = probe_picture(source.path, max_pixels=max_pixels)
            if to_file is not None:
                destination = to_file
            else:
                folder = source.path.parent if output is None else output / source.relative.parent
                destination = folder / _result_name(source.path, info, scale, format, suffix)
            real = os.path.realpath(destination)
            if real in inputs:
                raise OverwriteError(f"{destination}: is an input; choose another folder or a --suffix")
            if real in taken:
                raise NameClashError(
                    f"{source.path}: {destination} is already the result of {taken[real]}; rename one of the two"
                )
            taken[real] = source.path
            planned.append(PlannedPicture(source.path, destination, info))
        except BamError as error:
            planned.append(PlannedPicture(source.path, error=error))
    return planned


def _in_folder(folder: Path, output: Path | None, recursive: bool) -> list[InputFile]:
    skipped = None if output is None else os.path.realpath(output)
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if recursive and name[0] != "." and os.path.realpath(Path(place, name)) != skipped
        )
        for name in sorted(files):
            path = Path(place, name)
            if name[0] != "." and path.suffix.lower() in ENDINGS:
                found.append(InputFile(path, path.relative_to(folder)))
    return found


def _without_results(sources: Sequence[InputFile], suffix: str) -> list[InputFile]:
    """Without those that were not named and are called like the result of another one."""
    results = {source.path.parent / f"{source.path.stem}{suffix}" for source in sources}
    return [source for source in sources if source.named or source.path.parent / source.path.stem not in results]


def _by_pattern(pattern: str) -> list[InputFile]:
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    paths = (Path(name) for name in sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return [InputFile(path, path.relative_to(fixed)) for path in paths if path.is_file()]


def _is_file_name(output: Path, sources: Sequence[InputFile]) -> bool:
    if output.is_dir() or output.suffix.lower() not in ENDINGS | set(written_endings()):
        if output.exists() and not output.is_dir():
            raise InputError(f"{output}: is a file, a folder or a picture's name was expected")
        return False
    if len(sources) > 1:
        raise InputError(f"{output}: is one file, but there are {len(sources)} inputs; give a folder")
    format_of_name(output)
    return True


def _result_name(source: Path, info: PictureInfo, scale: float, format: str, suffix: str) -> str:
    height, width = target_size((info.height, info.width), scale)
    chosen = automatic_format(info, width=width, height=height) if format == "auto" else format_named(format)
    # Not with_suffix: "a.b" is a stem that keeps its dot.
    return f"{source.stem}{suffix}.{chosen.name}"
