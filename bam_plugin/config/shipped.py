"""The option files that come with bam_plugin: where they are, what they reproduce, and a copy for the user.

In a checkout they lie in `options/` beside the package; a wheel carries the same folder inside the package.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bam_plugin.config.loader import read_options
from bam_plugin.config.problems import OptionsError
from bam_plugin.files import atomic_path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = ("train", "test")
_PAPER_RECIPE = "base/div2k.yml"


@dataclass(frozen=True)
class ShippedFile:
    """One option file for a training or a test."""

    name: str
    """Path below the options folder, such as `train/BSRN/train_BSRN_x4.yml`."""
    path: Path
    """Where it is now."""
    about: str
    """The first sentence of its comment."""
    methods: dict[str, str] = field(default_factory=dict)
    """Method -> what it reproduces; empty if the file has no methods."""
    paper_recipe: bool = False
    """Whether it trains on DIV2K as the paper describes, so that one may expect the paper's numbers."""

    @property
    def is_train(self) -> bool:
        """Whether it is for a training, not for a test."""
        return self.name.startswith("train/")


def options_folder() -> Path:
    """The folder that holds `train/`, `test/` and `base/`. Raises OptionsError if the installation lacks it."""
    candidates = (_PACKAGE / "options", _PACKAGE.parent / "options")
    for folder in candidates:
        if (folder / "base").is_dir():
            return folder
    raise OptionsError(
        f"the option files of bam_plugin are in none of {', '.join(map(str, candidates))}; install bam-plugin again"
    )


def shipped_files() -> list[ShippedFile]:
    """All shipped option files, trainings first, by name."""
    folder = options_folder()
    paths = [path for kind in _FOLDERS for path in sorted((folder / kind).rglob("*.yml"))]
    paper = read_options(folder / _PAPER_RECIPE, force=["scale=4"]).values
    files = []
    for path in paths:
        loaded = read_options(path)
        files.append(
            ShippedFile(
                name=path.relative_to(folder).as_posix(),
                path=path,
                about=_first_sentence(path),
                methods=loaded.methods,
                paper_recipe=_training(loaded.values) == _training(paper),
            )
        )
    return files


def copy_shipped(destination: str | Path) -> list[Path]:
    """Copy the options folder to `destination`/options. Returns the files that it wrote.

    If a file is there already and differs, it raises OptionsError and writes nothing.
    """
    source, target = options_folder(), Path(destination) / "options"
    pairs = [(path, target / path.relative_to(source)) for path in _all_files(source)]
    for path, copy in pairs:
        if copy.exists() and copy.read_bytes() != path.read_bytes():
            raise OptionsError(f"{copy} exists and differs; move it away, or choose another folder")
    for path, copy in pairs:
        with atomic_path(copy) as temporary:
            shutil.copyfile(path, temporary)
    return [copy for _, copy in pairs]


def _all_files(folder: Path) -> Iterator[Path]:
    for name in ("base", *_FOLDERS):
        yield from sorted((folder / name).rglob("*.yml"))
    yield from sorted((folder / "warm_start").glob("*.pth"))  # weights that some trainings start from


def _training(values: dict[str, Any]) -> tuple[Any, ...]:
    """The parts of a file that make its training recipe: the data, the batch and the section `train`."""
    data = values["datasets"].get("train", {})
    return values.get("train"), data.get("name"), data.get("batch_size_per_gpu"), data.get("dataset_enlarge_ratio")


def _first_sentence(path: Path) -> str:
    """The comment at the top of the file, up to its first full stop."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words).partition(". ")[0].rstrip(".")
