"""The table at the end of a test: the paper's values are found, differences are right, files agree with each other."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bam_plugin.data.evaluation import SetResult
from bam_plugin.errors import BamError
from bam_plugin.train.report import CONVENTIONS, paper_methods, paper_value, write_report

RESULTS = [
    SetResult("Set5", 31.40, 0.8811, 5),
    SetResult("set-14", 28.00, 0.767, 14),
    SetResult("BSD100", 27.1849, 0.72, 100),
    SetResult("Manga109", 30.0, 0.9, 109),
    SetResult("same", float("inf"), 1.0, 1),
]


def test_table_files_and_differences(tmp_path: Path) -> None:
    markdown = write_report(RESULTS, tmp_path / "new", name="my run", scale=4, paper_method="BSRN")
    lines = markdown.splitlines()
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[4:9]}
    assert lines[0] == "## my run, x4" and len({len(line) for line in lines[2:9]}) == 1
    assert cells["Set5"] == [
        "5", "31.40", "0.8811", "28.42 / 0.810", "+2.98 / +0.071", "31.35 / 0.880", "+0.05 / +0.001"
    ]  # fmt: skip
    assert cells["set-14"][-1] == "-0.04 / -0.001"
    # A difference that rounds to nothing has no sign of its own.
    assert cells["BSD100"][-1] == "+0.00 / +0.000"
    assert cells["Manga109"][3:] == ["-"] * 4
    assert cells["same"][1] == "inf"
    assert all(convention in markdown for convention in CONVENTIONS)

    document = json.loads((tmp_path / "new/results.json").read_text())
    with (tmp_path / "new/results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert (tmp_path / "new/results.md").read_text() == markdown
    assert document["conventions"] == list(CONVENTIONS) and document["paper_method"] == "BSRN"
    assert [row["dataset"] for row in document["results"]] == [row["dataset"] for row in table]
    assert document["results"][0]["psnr_minus_paper"] == float(table[0]["psnr_minus_paper"]) == 0.05
    assert document["results"][4]["psnr"] is None


def test_the_papers_values() -> None:
    assert len(paper_methods()) == 12
    bicubic = paper_value("Bicubic", 3, "Urban100")
    assert bicubic is not None and (bicubic.psnr, bicubic.ssim, bicubic.misprint) == (24.46, 0.735, False)
    misprint = paper_value("VDSR_ABC", 4, "Set14")
    assert misprint is not None and misprint.misprint
    assert paper_value("BSRN", 2, "Set5") is None


def test_without_the_paper_and_with_a_misprint(tmp_path: Path) -> None:
    assert "(paper) |" not in write_report(RESULTS, tmp_path, name="x", scale=8).replace("bicubic (paper)", "")
    assert "29.63 / 0.730 (misprint?)" in write_report(RESULTS, tmp_path, name="x", scale=4, paper_method="VDSR_ABC")
    with pytest.raises(BamError, match="SRResNet_BAM"):
        write_report(RESULTS, tmp_path, name="x", scale=4, paper_method="EDSR")
