"""Problems of an option file: one line each, with the full key, the place in the file and the next step."""

from __future__ import annotations

from collections.abc import Sequence
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
    """An option file has mistakes. `problems` holds all of them, not only the first."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)
