"""The table of what became of each convolution of a network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Row:
    """What became of one convolution."""

    name: str
    shape: str
    binarized: bool
    note: str
    """The accumulation group and position, or why the convolution was kept."""


@dataclass
class SwapReport:
    """The table of all convolutions of a network; `str` gives it as text."""

    rows: list[Row]
    others: dict[str, int]
    """Class name -> number of other modules with parameters of their own, all kept."""
    rehearsed: bool
    """Whether the binary network was run on an example, so that each row is known to be true."""
    unmatched: list[str]
    """Patterns of the recipe that match no convolution."""

    @property
    def binarized(self) -> list[str]:
        """Names of the binarized convolutions."""
        return [row.name for row in self.rows if row.binarized]

    def __str__(self) -> str:
        name_width = max([len(row.name) for row in self.rows] + [6])
        shape_width = max([len(row.shape) for row in self.rows] + [5])
        lines = [f"{'module':<{name_width}}  {'shape':<{shape_width}}  kind   note"]
        for row in self.rows:
            kind = "binary" if row.binarized else "float "
            lines.append(f"{row.name:<{name_width}}  {row.shape:<{shape_width}}  {kind} {row.note}".rstrip())
        kept = ", ".join(f"{count} {kind}" for kind, count in sorted(self.others.items()))
        lines.append(
            f"{len(self.binarized)} of {len(self.rows)} convolutions binarized" + (f"; kept: {kept}" if kept else "")
        )
        if not self.rehearsed:
            lines.append("not run on an example: whether the network calls each of them is not known")
        lines += [f"the recipe's pattern {pattern!r} matches no convolution" for pattern in self.unmatched]
        return "\n".join(lines)
