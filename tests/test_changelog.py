"""CHANGELOG.md sends users of old import paths to modules that are there, and forgets none that is gone."""

from __future__ import annotations

import re

from helpers.places import PACKAGE, ROOT


def moved_modules() -> dict[str, str]:
    """Old module -> new module, both below bam_plugin, by the rows of the table."""
    moved = {}
    for line in (ROOT / "CHANGELOG.md").read_text().splitlines():
        if found := re.fullmatch(r"\| `([\w.]+)` \| `([\w.]+)` \|", line):
            moved[found[1]] = found[2]
        elif found := re.fullmatch(r"\| (?:`([\w.]+)`|\(top\)): ([\w, ]+) \| `([\w.]+)` \|", line):
            for name in found[2].split(", "):
                moved[f"{found[1]}.{name}" if found[1] else name] = f"{found[3]}.{name}"
    return moved


def test_moved_modules_are_where_the_changelog_says() -> None:
    moved = moved_modules()
    assert len(moved) > 50
    for module in moved.values():
        path = PACKAGE / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module
