"""The curve of a long training, from the logs that BasicSR wrote: record, picture and table.

    python benchmarks/long_training.py docs/lab/training_light_x4.csv [NAME=FOLDER[+OFFSET] ...] --png FILE

FOLDER is a folder of experiments/: what its *.log files say of the validation set goes into the record, which outlives
the folder and holds the trainings of earlier runs. OFFSET is the iteration at which the training's first weights came
from another one. The logs are read in order of their names; what a resumed training repeats takes the place of what was
behind its checkpoint. The table goes to stdout.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

from bam_plugin.files import atomic_path

_ITERATION = re.compile(r"iter: *([\d,]+),")
_RESUME = re.compile(r"Resuming training from epoch: \d+, iter: (\d+)")
_METRIC = re.compile(r"# (\w+): ([\d.]+)")
COLUMNS = ("training", "iteration", "psnr", "ssim")

Curve = dict[int, dict[str, float]]  # iteration -> name of a metric -> value on the validation set


def read_logs(folder: Path, offset: int) -> Curve:
    """The curve that the logs of a training tell; raises SystemExit where there is none."""
    logs = sorted(folder.glob("*.log"))
    if not logs:
        raise SystemExit(f"expected *.log files of a training in {folder}, found none; give a folder of experiments/")
    curve: Curve = {}
    for log in logs:
        _read_log(log.read_text(encoding="utf-8"), curve)
    return {offset + iteration: metrics for iteration, metrics in curve.items()}


def _read_log(text: str, curve: Curve) -> None:
    iteration = 0
    for line in text.splitlines():
        if resumed := _RESUME.search(line):
            iteration = int(resumed.group(1))
            for later in [known for known in curve if known > iteration]:
                del curve[later]
        elif printed := _ITERATION.search(line):
            iteration = int(printed.group(1).replace(",", ""))
        elif metric := _METRIC.search(line):
            at = re.search(r"@ (\d+) iter", line)
            # "Best: ... @ N iter" is the iteration of the best result, which is this one or an earlier one.
            here = max(iteration, int(at.group(1)) if at else 0)
            curve.setdefault(here, {})[metric.group(1)] = float(metric.group(2))


def read_record(record: Path) -> dict[str, Curve]:
    """The curves of a record, by training; none where there is no file yet."""
    curves: dict[str, Curve] = {}
    if record.exists():
        with record.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                metrics = {metric: float(row[metric]) for metric in COLUMNS[2:]}
                curves.setdefault(row["training"], {})[int(row["iteration"])] = metrics
    return curves


def write_record(record: Path, curves: dict[str, Curve]) -> None:
    """Write all curves, one row for a validation."""
    with atomic_path(record) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, curve in curves.items():
            for iteration in sorted(curve):
                writer.writerow([name, iteration, *(curve[iteration][metric] for metric in COLUMNS[2:])])


def table(curves: dict[str, Curve]) -> str:
    """Markdown rows: iteration, and the PSNR and SSIM of each training."""
    rows = ["| iteration | " + " | ".join(f"{name}: PSNR / SSIM" for name in curves) + " |"]
    rows.append("|--:|" + "--:|" * len(curves))
    for iteration in sorted({at for curve in curves.values() for at in curve}):
        found = [curve.get(iteration) for curve in curves.values()]
        cells = ["" if entry is None else f"{entry['psnr']:.2f} / {entry['ssim']:.4f}" for entry in found]
        rows.append(f"| {iteration:,} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(curves: dict[str, Curve], png: Path) -> None:
    """Draw the PSNR of all curves in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5))
    for name, curve in curves.items():
        at = sorted(curve)
        axis.plot(at, [curve[i]["psnr"] for i in at], marker="o", markersize=4, label=name)
    axis.set(ylabel="PSNR of the validation set (dB)", xlabel="iteration")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(png, dpi=110)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="CSV file, made or added to")
    parser.add_argument("trainings", nargs="*", metavar="NAME=FOLDER[+OFFSET]")
    parser.add_argument("--png", type=Path, required=True)
    args = parser.parse_args()
    curves = read_record(args.record)
    for entry in args.trainings:
        name, _, place = entry.rpartition("=")
        folder, _, offset = place.rpartition("+")
        if not folder or not offset.isdigit():
            folder, offset = place, "0"
        curves.setdefault(name or Path(folder).name, {}).update(read_logs(Path(folder), int(offset)))
    write_record(args.record, curves)
    draw(curves, args.png)
    print(table(curves))


if __name__ == "__main__":
    main()
