"""Where the sets of images are (Set5, Set14, B100, T91, BSDS400, ...): one folder a set.

The variable BAM_DATA_ROOT names the folder that holds them; otherwise it is `datasets/` in the current directory or in
the checkout. Tests and benchmarks need some sets as they were downloaded, and do without where they are missing.
"""

from __future__ import annotations

import os
from pathlib import Path

from bam_plugin.data.benchmarks import find_benchmarks, find_hr_images
from bam_plugin.errors import BamError

VARIABLE = "BAM_DATA_ROOT"
"""Environment variable with the folder that holds the sets."""


class UnknownSetError(BamError):
    """A set is named that is nowhere."""


def set_places() -> list[Path]:
    """The folders that may hold sets, in the order in which they are searched; they need not be there."""
    named = os.environ.get(VARIABLE)
    usual = [Path("datasets"), Path(__file__).parents[2] / "datasets"]
    return [Path(named), *usual] if named else usual


def find_set(name: str | os.PathLike) -> Path:
    """The folder of a set: `name` itself, or that name in one of `set_places`. Raises UnknownSetError."""
    roots = [Path(), *set_places()]
    for root in roots:
        if (root / name).is_dir():
            return root / name
    places = ", ".join(str(root.resolve()) for root in roots)
    raise UnknownSetError(
        f"there is no set {name} (looked in {places}); name a folder of original images, or set {VARIABLE}"
    )


def find_image_sets() -> Path | None:
    """The folder that holds the sets as downloaded, or None where there is none.

    It counts when Set5's images lie in it, not only the cut ones that `bam prepare` makes of them. Raises BamError when
    BAM_DATA_ROOT names a folder without them: a wrong path should not look like missing sets.
    """
    for place in set_places():
        if place.is_dir() and _holds_images(find_benchmarks(place).get("Set5")):
            return place.resolve()
        if str(place) == os.environ.get(VARIABLE):
            raise BamError(f"{VARIABLE} names {place}: expected a folder with Set5/baby.png and so on, found none.")
    return None


def _holds_images(folder: Path | None) -> bool:
    if folder is None:
        return False
    try:
        return all(path.parent == folder for path in find_hr_images(folder).values())
    except BamError:
        return False
