"""The curve of a long training, from the logs that BasicSR wrote: picture and table.

    python benchmarks/long_training.py NAME=FOLDER [NAME=FOLDER ...] --png docs/training_light_x4.png

FOLDER is a folder of experiments/: its *.log files are read in order of their names; what a resumed training repeats
takes the place of what was behind its checkpoint. Upper panel: PSNR of the validation set, lower one: training loss, a
mean over 2000 iterations. The table goes to stdout.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_ITERATION = re.compile(r"iter: *([\d,]+),")
_LOSS = re.compile(r"l_pix: ([\d.e+-]+)")
_RESUME = re.compile(r"Resuming training from epoch: \d+, iter: (\d+)")
_METRIC = re.compile(r"# (\w+): ([\d.]+)")
WINDOW = 2000  # iterations


@dataclass
class Curve:
    """`loss[iteration]`, and `metrics[iteration][name]` of the validation set."""

    loss: dict[int, float] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)


def read_curve(folder: Path) -> Curve:
    """Everything that the logs of a training say; raises SystemExit where there is none."""
    logs = sorted(folder.glob("*.log"))
    if not logs:
        raise SystemExit(f"expected *.log files of a training in {folder}, found none; give a folder of experiments/")
    curve = Curve()
    for log in logs:
        _read_log(log.read_text(encoding="utf-8"), curve)
    return curve


def _read_log(text: str, curve: Curve) -> None:
    iteration = 0
    for line in text.splitlines():
        resumed, printed = _RESUME.search(line), _ITERATION.search(line)
        if resumed:
            iteration = int(resumed.group(1))
            for record in (curve.loss, curve.metrics):
                for later in [known for known in record if known > iteration]:
                    del record[later]
        elif printed and (loss := _LOSS.search(line)):
            iteration = int(printed.group(1).replace(",", ""))
            curve.loss[iteration] = float(loss.group(1))
        elif metric := _METRIC.search(line):
            at = re.search(r"@ (\d+) iter", line)
            # "Best: ... @ N iter" is the iteration of the best result, which is this one or an earlier one.
            here = max(iteration, int(at.group(1)) if at else 0)
            curve.metrics.setdefault(here, {})[metric.group(1)] = float(metric.group(2))


def table(curves: dict[str, Curve]) -> str:
    """Markdown rows: iteration, and the PSNR and SSIM of each training."""
    rows = ["| iteration | " + " | ".join(f"{name}: PSNR / SSIM" for name in curves) + " |"]
    rows.append("|--:|" + "--:|" * len(curves))
    for iteration in sorted({at for curve in curves.values() for at in curve.metrics}):
        found = [curve.metrics.get(iteration) for curve in curves.values()]
        cells = ["" if entry is None else f"{entry['psnr']:.2f} / {entry['ssim']:.4f}" for entry in found]
        rows.append(f"| {iteration:,} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(curves: dict[str, Curve], png: Path) -> None:
    """Draw all curves as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 2))
    for name, curve in curves.items():
        at = sorted(curve.metrics)
        (line,) = upper.plot(at, [curve.metrics[i]["psnr"] for i in at], marker="o", markersize=4, label=name)
        iterations = np.array(sorted(curve.loss))
        losses = np.array([curve.loss[i] for i in iterations])
        edges = np.arange(0, iterations[-1] + WINDOW, WINDOW)
        bins = np.digitize(iterations, edges)
        used = np.unique(bins)
        lower.plot(
            [iterations[bins == b].mean() for b in used],
            [losses[bins == b].mean() for b in used],
            color=line.get_color(),
        )
    upper.set(ylabel="PSNR of the validation set (dB)")
    lower.set(ylabel="L1 loss", xlabel="iteration")
    upper.legend()
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(png, dpi=110)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--png", type=Path, required=True)
    args = parser.parse_args()
    curves = {}
    for entry in args.trainings:
        name, _, folder = entry.rpartition("=")
        curves[name or Path(folder).name] = read_curve(Path(folder))
    draw(curves, args.png)
    print(table(curves))


if __name__ == "__main__":
    main()
