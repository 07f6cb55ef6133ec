"""Write the tables of binarizers in docs/networks.md from their classes: `python tools/docs_tables.py`.

A row has the name, the first line of the class's docstring (formula and source) and the options of its constructor.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bam_plugin.nn import ACTIVATION_BINARIZERS, WEIGHT_BINARIZERS
from bam_plugin.nn.activations import ActivationBinarizer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
GIVEN = ("self", "num_feat", "group_index")
"""What a convolution fills in itself."""


def formula_and_source(binarizer: type) -> tuple[str, str]:
    """The two parts of the docstring's first line, `FORMULA   (SOURCE).`."""
    line = (inspect.getdoc(binarizer) or "").splitlines()[0]
    found = re.fullmatch(r"(.+?)   \((.+)\)\.", line)
    if found is None:
        raise ValueError(f"{binarizer.__name__}: the docstring begins with 'FORMULA   (SOURCE).', found {line!r}")
    return found[1], found[2]


def options(binarizer: type) -> str:
    """The keywords of the constructor with their defaults."""
    parameters = inspect.signature(binarizer).parameters.values()
    return ", ".join(f"`{each.name}: {each.default}`" for each in parameters if each.name not in GIVEN)


def stage(binarizer: type[ActivationBinarizer]) -> str:
    """Whether a training stage in full precision knows what to put in the binarizer's place."""
    return "yes" if binarizer.is_relaxable() else ""


def table(titles: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    lines = [list(titles), *(list(map(str, row)) for row in rows)]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(line)} |".replace("  |", " |") for line in cells)


def weight_table() -> str:
    """The weight binarizers."""
    rows = [(f"`{name}`", *formula_and_source(each), options(each)) for name, each in WEIGHT_BINARIZERS.items()]
    return table(("weights", "formula", "source", "options"), rows)


def activation_table() -> str:
    """The activation binarizers."""
    rows = [
        (f"`{name}`", *formula_and_source(each), options(each), stage(each))
        for name, each in ACTIVATION_BINARIZERS.items()
    ]
    return table(("activations", "formula", "source", "options", "stage `float`"), rows)


def written(page: str) -> str:
    """`page` with the tables of today between its marks."""
    for name, made in (("weights", weight_table()), ("activations", activation_table())):
        begin, end = f"<!-- {name}: made by tools/docs_tables.py -->\n\n", f"\n\n<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}{made}{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
