"""Find the packed file that a name means: a path, or a network of the folder `bam_plugin/zoo` in a given scale.

The files of one network in several scales have the names NAME_x2.bam.safetensors, NAME_x4.bam.safetensors and lie side
by side.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bam_plugin.errors import BamError

SUFFIX = ".bam.safetensors"
ZOO = Path(__file__).parents[1] / "zoo"
DEFAULT_NETWORK = "bsrn_light"
"""The network that a user gets who names none."""

_NAME = re.compile(r"(?P<network>.+)_x(?P<scale>\d+)\.bam\.safetensors")


class UnknownModelError(BamError):
    """A name is neither a packed file nor a network of the zoo."""


@dataclass(frozen=True)
class ModelFile:
    """A packed file whose name follows the convention: NETWORK_xSCALE.bam.safetensors."""

    network: str
    scale: int
    path: Path


def list_models(folder: Path = ZOO) -> list[ModelFile]:
    """The packed files of a folder whose names follow the convention, sorted by network and scale."""
    found = []
    for path in folder.glob(f"*{SUFFIX}") if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found.append(ModelFile(network=match["network"], scale=int(match["scale"]), path=path))
    return sorted(found, key=lambda model: (model.network, model.scale))


def find_model(name: str | os.PathLike | None = None, *, scale: float | None = None, zoo: Path = ZOO) -> Path:
    """Return the packed file that `name` means, of the scale nearest to `scale`.

    `name` is a path, a network of the zoo ("bsrn") or one of its files ("bsrn_x4"); None means the zoo's only or
    default network. A path or file name that states its scale is taken as it is, unless a sibling file has exactly
    `scale`. If no scale fits, the smallest larger one is taken, because shrinking loses less than enlarging, or else
    the largest. Raises UnknownModelError, which lists the files that are there.
    """
    if name is not None and (Path(name).is_file() or len(Path(name).parts) > 1 or str(name).endswith(SUFFIX)):
        return _sibling(_existing(Path(name)), scale)
    models = list_models(zoo)
    if name is None:
        networks = sorted({model.network for model in models})
        if len(networks) != 1 and DEFAULT_NETWORK not in networks:
            raise UnknownModelError(
                "no model was named, and there is no default one; "
                f"give a packed file (-m FILE) or a network: {_listing(models)}"
            )
        name = networks[0] if len(networks) == 1 else DEFAULT_NETWORK
    for model in models:
        if f"{model.network}_x{model.scale}" == str(name):
            return _sibling(model.path, scale)
    family = [model for model in models if model.network == str(name)]
    if not family:
        raise UnknownModelError(f"{name!r} is no packed file and no network of the zoo; there: {_listing(models)}")
    return _nearest(family, scale if scale is not None else max(model.scale for model in family)).path


def _existing(path: Path) -> Path:
    if not path.is_file():
        beside = ", ".join(sorted(p.name for p in path.parent.glob(f"*{SUFFIX}"))) if path.parent.is_dir() else ""
        raise UnknownModelError(f"{path}: there is no such packed file; beside it: {beside or 'none'}")
    return path


def _sibling(path: Path, scale: float | None) -> Path:
    match = _NAME.fullmatch(path.name)
    if scale is None or match is None or int(match["scale"]) == scale:
        return path
    for model in list_models(path.parent):
        if model.network == match["network"] and model.scale == scale:
            return model.path
    return path


def _nearest(family: list[ModelFile], scale: float) -> ModelFile:
    larger = [model for model in family if model.scale >= scale]
    return min(larger, key=lambda model: model.scale) if larger else max(family, key=lambda model: model.scale)


def _listing(models: list[ModelFile]) -> str:
    return ", ".join(f"{model.network}_x{model.scale}" for model in models) or "none is shipped"
