"""Testing from an option file through BasicSR's `test_pipeline`: images, metrics and a report of every test set.

`bam test -opt FILE` calls it. Results go to `results/NAME/` under the
current directory: pictures, and the means as results.md, .csv and .json, beside the paper's values where `name` is one
of its networks (such as `SRResNet_bam_x4`). The table is printed on standard output.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bam_plugin.data.evaluation import SetResult
from bam_plugin.errors import BamError
from bam_plugin.toolbox import compat
from bam_plugin.train.report import CONVENTIONS, paper_methods, write_report
from bam_plugin.train.training import pipeline_process


@dataclass(frozen=True)
class TestRun:
    """The results of a test."""

    __test__ = False  # pytest must not collect it.

    images: dict[str, list[dict[str, Any]]]
    """Test set -> one record per image: `image` and each metric of `val.metrics`."""
    report: str
    """The means as a table, ready to print."""


def test(argv: Sequence[str], root_path: str | Path | None = None) -> TestRun:
    """Run BasicSR's test pipeline with its own arguments `argv` (`-opt FILE`, ...).

    `root_path` holds `results/` and is the current directory by default. The model must be one of this package.
    """
    with pipeline_process("bam_plugin.test", argv, is_train=False):
        import basicsr.test

        models: list[Any] = []
        build_model = basicsr.test.build_model

        def remember(opt: dict[str, Any]) -> Any:
            models.append(build_model(opt))
            return models[-1]

        with compat.replaced(basicsr.test, build_model=remember):
            basicsr.test.test_pipeline(str(Path(root_path or Path.cwd()).resolve()))
    model = models[-1]
    if not hasattr(model, "image_results"):
        raise BamError(f"model_type {type(model).__name__} keeps no results per image; use BinarySRModel")
    # Only the first of several processes measures.
    return TestRun(model.image_results, make_report(model.opt, model.image_results) if model.image_results else "")


def make_report(opt: Mapping[str, Any], results: Mapping[str, list[dict[str, Any]]]) -> str:
    """The means of each test set as Markdown, also written into `path.results_root` of `opt`.

    A set without targets becomes a line of text. The table needs one metric whose type names psnr and one that names
    ssim. Other metrics become lines of text, too.
    """
    metrics = opt["val"].get("metrics") or {}
    psnr, ssim = (
        next((key for key, each in metrics.items() if kind in each["type"]), None) for kind in ("psnr", "ssim")
    )
    rows, others = [], []
    for dataset, records in results.items():
        if psnr in records[0] and ssim in records[0]:
            rows.append(SetResult(dataset, _mean(records, psnr), _mean(records, ssim), len(records)))
        else:
            others.append(_line(dataset, records))
    if not rows:
        return "".join(others)
    table = write_report(
        rows,
        opt["path"]["results_root"],
        name=opt["name"],
        scale=opt["scale"],
        paper_method=_paper_method(opt["name"], opt["scale"]),
        conventions=_conventions(metrics[psnr], metrics[ssim], opt["scale"]),
    )
    return table + "".join(others)


def main(argv: Sequence[str] | None = None) -> int:
    """Test, print the report, and return the exit code: 0 good, 2 an error that the options explain."""
    try:
        run = test(sys.argv[1:] if argv is None else argv)
    except BamError as error:
        sys.stderr.write(f"bam test: {type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.write(run.report)
    return 0


def _mean(records: Sequence[Mapping[str, Any]], metric: str) -> float:
    return sum(record[metric] for record in records) / len(records)


def _line(dataset: str, records: Sequence[Mapping[str, Any]]) -> str:
    """A test set, its number of images and the mean of each metric."""
    means = (f"{metric} {_mean(records, metric):.4f}" for metric in records[0] if metric != "image")
    return "  ".join([dataset, f"{len(records)} images", *means]) + "\n"


def _paper_method(name: str, scale: int) -> str | None:
    """The paper's name of the network `name`: `VDSR_bnn_x2` is VDSR_BNN, and `BSRN_bam_x4` is its BSRN."""
    stem = name.removesuffix(f"_x{scale}").lower()
    printed = {method.lower(): method for method in paper_methods()}
    return printed.get(stem) or printed.get(stem.removesuffix("_bam"))


def _conventions(psnr: Mapping[str, Any], ssim: Mapping[str, Any], scale: int) -> Sequence[str]:
    """How the numbers were measured: as in the literature, or by the settings in words."""
    literature = (
        {"type": "calculate_psnr_y", "crop_border": scale},
        {"type": "calculate_ssim_y", "crop_border": scale},
    )
    settings = [{key: value for key, value in each.items() if key != "better"} for each in (psnr, ssim)]
    if tuple(settings) == literature:
        return CONVENTIONS
    return [", ".join(f"{key} {value}" for key, value in each.items()) for each in settings]


if __name__ == "__main__":
    sys.exit(main())
