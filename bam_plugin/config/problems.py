"""What is wrong in an option file: one line per problem, with the full key, the place in the file and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bam_plugin.errors import BamError

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One mistake in an option file."""

    key: KeyPath
    """The path of the key from the top of the file, such as ("train", "optim_g", "lr")."""
    message: str
    """What was expected, what was found, and what to do next."""

    def describe(self, origins: dict[KeyPath, str]) -> str:
        """`train.optim_g.lr (file.yml:12): message`; the place is that of the nearest enclosing key that has one."""
        place = next((origins[self.key[:n]] for n in range(len(self.key), 0, -1) if self.key[:n] in origins), None)
        key = ".".join(self.key) or "the file"
        return f"{key} ({place}): {self.message}" if place else f"{key}: {self.message}"


class OptionsError(BamError):
    """An option file cannot be used. `problems` holds every mistake that was found, not only the first."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was probably meant to be, or None."""
    by_lower = {candidate.lower().replace("-", "_"): candidate for candidate in names}
    wanted = name.lower().replace("-", "_")
    matches = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.6)
    # A short name that begins one valid name only (L1 for L1Loss) is too different in length for a close match.
    begun = [candidate for candidate in by_lower if len(wanted) > 1 and candidate.startswith(wanted)]
    if not matches and len(begun) == 1:
        matches = begun
    return by_lower[matches[0]] if matches else None


def suggest(name: str, names: Iterable[str], limit: int = 24) -> str:
    """`did you mean X?`, or the list of what is valid where nothing is near (shortened to `limit` names)."""
    names = sorted(names)
    near = nearest(name, names)
    if near is not None:
        return f"did you mean {near}?"
    if not names:
        return "nothing can be set here; remove it"
    listed = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"valid here: {listed}"
