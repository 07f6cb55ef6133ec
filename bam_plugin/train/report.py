"""The table at the end of `bam test`: measured values, those of the paper, bicubic, the differences and the
conventions.

A PSNR without its convention is not a result. The same numbers are written as CSV (one row per set), JSON (with the
conventions) and Markdown (as the terminal shows them).
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bam_plugin.data.evaluation import SetResult
from bam_plugin.errors import BamError
from bam_plugin.files import atomic_path

# How the metrics `calculate_psnr_y` and `calculate_ssim_y` measure (bam_plugin/pictures/measures.py).
CONVENTIONS = (
    "Y of YCbCr (BT.601 as MATLAB's rgb2ycbcr), rounded to 8 bits, of the 8-bit result",
    "as many pixels as the scale cropped from each border",
    "SSIM: 11x11 Gaussian window of sigma 1.5, valid region",
    "single-channel images (bridge of Set14) are measured as grey (0..255), not as Y (16..235)",
    "a set's value is the mean over its images",
)

# Values of the paper that surely are misprints, because a neighbour contradicts them.
MISPRINTS = {("VDSR_ABC", 4, "set14", "psnr")}

_PAPER_SETS = ("set5", "set14", "b100", "urban100")
_ALIASES = {"bsd100": "b100", "bsds100": "b100"}


@dataclass(frozen=True)
class Reference:
    """A pair of values that the paper prints. `misprint` marks a PSNR that cannot be right."""

    psnr: float
    ssim: float
    misprint: bool = False


def write_report(
    results: Sequence[SetResult],
    folder: str | os.PathLike,
    *,
    name: str,
    scale: int,
    paper_method: str | None = None,
    conventions: Sequence[str] = CONVENTIONS,
) -> str:
    """Write results.csv, results.json and results.md into `folder`. Returns the Markdown.

    name: what was tested, for the title. paper_method: the method's name in the paper's tables (`paper_methods()`), or
    None if it is not in the paper. conventions: how the numbers were measured, in words.
    """
    markdown = report_markdown(results, name=name, scale=scale, paper_method=paper_method, conventions=conventions)
    rows = [_row(result, scale, paper_method) for result in results]
    folder = Path(folder)
    with atomic_path(folder / "results.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(_row(SetResult("", 0, 0, 0), scale, None)))
        writer.writeheader()
        writer.writerows(rows)
    document = {"name": name, "scale": scale, "paper_method": paper_method, "conventions": list(conventions)}
    with atomic_path(folder / "results.json") as path:
        path.write_text(json.dumps({**document, "results": rows}, indent=2, allow_nan=False) + "\n")
    with atomic_path(folder / "results.md") as path:
        path.write_text(markdown)
    return markdown


def report_markdown(
    results: Sequence[SetResult],
    *,
    name: str,
    scale: int,
    paper_method: str | None = None,
    conventions: Sequence[str] = CONVENTIONS,
) -> str:
    """The results as a Markdown table beside the paper's values; arguments as in `write_report`."""
    if paper_method is not None and paper_method not in paper_methods():
        raise BamError(f"expected a method of the paper ({', '.join(paper_methods())}), found {paper_method!r}.")
    return _markdown([_row(result, scale, paper_method) for result in results], name, scale, paper_method, conventions)


def paper_methods() -> list[str]:
    """The methods in the paper's tables, as it names them."""
    return sorted({method for method, _ in _paper()})


def paper_value(method: str, scale: int, dataset: str) -> Reference | None:
    """The paper's PSNR and SSIM of `method` on `dataset` (names as in the literature, any case), or None."""
    row = _paper().get((method, scale))
    key = _canonical(dataset)
    if row is None or key not in _PAPER_SETS:
        return None
    return Reference(
        float(row[f"{key}_psnr"]), float(row[f"{key}_ssim"]), misprint=(method, scale, key, "psnr") in MISPRINTS
    )


@functools.lru_cache(maxsize=1)
def _paper() -> dict[tuple[str, int], dict[str, str]]:
    text = importlib.resources.files("bam_plugin.data").joinpath("paper_results.csv").read_text()
    return {(row["method"], int(row["scale"])): row for row in csv.DictReader(text.splitlines())}


def _canonical(dataset: str) -> str:
    key = dataset.lower().replace("-", "").replace("_", "")
    return _ALIASES.get(key, key)


def _row(result: SetResult, scale: int, paper_method: str | None) -> dict:
    paper = paper_value(paper_method, scale, result.dataset) if paper_method else None
    bicubic = paper_value("Bicubic", scale, result.dataset)
    row: dict = asdict(result)
    # JSON has no infinity: identical images have no finite PSNR.
    row["psnr"] = round(result.psnr, 4) if result.psnr != float("inf") else None
    row["ssim"] = round(result.ssim, 5)
    for title, reference in (("paper", paper), ("bicubic", bicubic)):
        for metric, digits in (("psnr", 2), ("ssim", 3)):
            value = getattr(reference, metric) if reference else None
            row[f"{title}_{metric}"] = value
            row[f"{metric}_minus_{title}"] = _difference_of(row[metric], value, digits)
    row["paper_misprint"] = bool(paper and paper.misprint)
    return row


def _difference_of(measured: float | None, printed: float | None, digits: int) -> float | None:
    if measured is None or printed is None:
        return None
    # Adding zero turns -0.0 into 0.0.
    return round(measured - printed, digits) + 0.0


def _markdown(rows: Sequence[dict], name: str, scale: int, paper_method: str | None, conventions: Sequence[str]) -> str:
    headings = ["set", "images", "PSNR", "SSIM", "bicubic (paper)", "gain"]
    columns = [
        lambda row: row["dataset"],
        lambda row: str(row["images"]),
        lambda row: _number(row["psnr"], 2),
        lambda row: _number(row["ssim"], 4),
        lambda row: _pair(row, "bicubic"),
        lambda row: _difference(row, "bicubic"),
    ]
    if paper_method and paper_method != "Bicubic":
        headings += [f"{paper_method} (paper)", "difference"]
        columns += [
            lambda row: _pair(row, "paper") + (" (misprint?)" if row["paper_misprint"] else ""),
            lambda row: _difference(row, "paper"),
        ]
    table = [headings, *([column(row) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(headings))]
    # The first column has names, the others have numbers.
    lines = [
        f"| {line[0].ljust(widths[0])} | "
        + " | ".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        + " |"
        for line in table
    ]
    lines.insert(1, f"|{'-' * (widths[0] + 2)}|" + "|".join("-" * (width + 1) + ":" for width in widths[1:]) + "|")
    notes = "\n".join(f"- {convention}" for convention in conventions)
    return f"## {name}, x{scale}\n\n" + "\n".join(lines) + f"\n\nConventions:\n{notes}\n"


def _pair(row: dict, title: str) -> str:
    if row[f"{title}_psnr"] is None:
        return "-"
    return f"{row[f'{title}_psnr']:.2f} / {row[f'{title}_ssim']:.3f}"


def _difference(row: dict, title: str) -> str:
    if row[f"psnr_minus_{title}"] is None:
        return "-"
    return f"{row[f'psnr_minus_{title}']:+.2f} / {row[f'ssim_minus_{title}']:+.3f}"


def _number(value: float | None, digits: int) -> str:
    return "inf" if value is None else f"{value:.{digits}f}"
