"""Testing from an option file through BasicSR's `test_pipeline`: images and metrics of every test set.

`python -m bam_plugin.test -opt FILE` and `bam test -opt FILE` are the same. Results go to `results/` under the current
directory; the means per test set are printed on standard output.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bam_plugin import _compat
from bam_plugin.errors import BamError
from bam_plugin.train import pipeline_process


def test(argv: Sequence[str], root_path: str | Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """Run BasicSR's test pipeline with its own arguments `argv` (`-opt FILE`, ...).

    Returns, per test set, one record per image: its name and its metrics. `root_path` holds `results/`; the current
    directory by default.
    """
    with pipeline_process("bam_plugin.test", argv):
        import basicsr.test

        models = []
        build_model = basicsr.test.build_model

        def remember(opt: dict[str, Any]) -> Any:
            models.append(build_model(opt))
            return models[-1]

        with _compat.replaced(basicsr.test, build_model=remember):
            basicsr.test.test_pipeline(str(Path(root_path or Path.cwd()).resolve()))
    return getattr(models[-1], "image_results", {})


def main(argv: Sequence[str] | None = None) -> int:
    """Test, print the means, and return the exit code: 0 good, 2 an error that the options explain."""
    try:
        results = test(sys.argv[1:] if argv is None else argv)
    except BamError as error:
        sys.stderr.write(f"bam test: {type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.write(format_means(results))
    return 0


def format_means(results: dict[str, list[dict[str, Any]]]) -> str:
    """One line per test set: its name, the number of images and the mean of each metric."""
    lines = []
    for dataset, records in results.items():
        names = [key for key in records[0] if key != "image"] if records else []
        means = (f"{name} {sum(record[name] for record in records) / len(records):.4f}" for name in names)
        lines.append("  ".join([dataset, f"{len(records)} images", *means]))
    return "".join(line + "\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
