"""Quality against time on this machine: the networks of the package beside small full-precision ones of others.

    python benchmarks/pareto.py --rivals FOLDER [--data FOLDER] [--scale 4] [--threads 1 2] [--only NAME ...]
                                [--rounds 15] [--csv FILE] [--plot FILE]

Every call goes from bytes to bytes, 320x180 pixels to 1280x720 at x4, as a user calls it: `Upscaler.upscale` for packed
files in each precision that they offer, and OpenVINO in fp32, bf16 and int8, ONNX Runtime and compiled PyTorch for the
rivals (rival_networks.py; `--rivals` is a folder with their authors' weights). All of them take turns in one run, and
medians are reported. PSNR on Y and SSIM are those of `bam test`, measured on what the same runtime gives. int8 is that
of NNCF, calibrated on pictures of `--calibration`; without NNCF it is left out.
Pause everything else on the machine: the result says what else was running.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rival_networks import OnPixels, read_rivals

from bam_plugin.data.evaluation import read_benchmark
from bam_plugin.engine.timing import measure
from bam_plugin.packed.format import read_packed
from bam_plugin.packed.precision import FLOAT, read_offers
from bam_plugin.packed.zoo import list_models
from bam_plugin.pictures.measures import psnr_y, ssim_y
from bam_plugin.upscale import Upscaler

SETS = ("Set5", "Set14", "B100")
Run = Callable[[np.ndarray], np.ndarray]
"""(H, W, 3) uint8 RGB -> (H * scale, W * scale, 3) uint8 RGB."""


@dataclass(frozen=True)
class Contestant:
    """One network in one runtime. `prepare(size, threads)` gives a run for pictures of that size, None for any."""

    network: str
    runtime: str
    prepare: Callable[[tuple[int, int] | None, int], Run]


@dataclass
class Row:
    """A line of the table. Milliseconds are medians, with the spread between the quartiles."""

    network: str
    runtime: str
    threads: int
    ms: float
    spread: float
    psnr: dict[str, float]
    ssim: dict[str, float]


def packed_contestants(scale: int) -> list[Contestant]:
    """The package's networks of a scale, in every precision that their files offer."""
    found = []
    for file in list_models():
        if file.scale != scale:
            continue
        model = read_packed(file.path)
        for precision in (FLOAT, *read_offers(model.graph, model.metadata)):

            def prepare(size, threads: int, path=file.path, precision=precision) -> Run:
                return Upscaler(path, threads=threads, precision=precision).upscale

            found.append(Contestant(f"{file.network}_x{scale}", f"bam {precision}", prepare))
    return found


def rival_contestants(folder: Path, scale: int, calibration: list[np.ndarray]) -> list[Contestant]:
    """The rivals in each runtime that is installed."""
    found = []
    for name, network in read_rivals(folder, scale).items():
        on_pixels = OnPixels(network)
        for runtime, prepare in (*_openvino(on_pixels, calibration), *_onnx(on_pixels), *_torch(on_pixels)):
            found.append(Contestant(name, runtime, prepare))
    return found


def _openvino(network: OnPixels, calibration: list[np.ndarray]):
    try:
        import openvino as ov
    except ModuleNotFoundError:
        return
    core = ov.Core()
    model = ov.convert_model(network, example_input=torch.zeros(1, 24, 32, 3, dtype=torch.uint8))

    def prepared(model, hint: str):
        def prepare(size, threads: int) -> Run:
            shaped = model.clone()
            shaped.reshape([1, *(size or (-1, -1)), 3])
            settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
            request = core.compile_model(shaped, "CPU", settings).create_infer_request()

            def run(pixels: np.ndarray) -> np.ndarray:
                request.infer([pixels[None]], share_inputs=True)
                return request.get_output_tensor(0).data[0]

            return run

        return prepare

    yield "OpenVINO fp32", prepared(model, "f32")
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        yield "OpenVINO bf16", prepared(model, "bf16")
    try:
        import nncf
    except ModuleNotFoundError:
        return
    data = nncf.Dataset([pixels[None] for pixels in calibration])
    yield "OpenVINO int8", prepared(nncf.quantize(model, data, subset_size=len(calibration)), "f32")


def _onnx(network: OnPixels):
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return
    stream = io.BytesIO()
    axes = {"pixels": {1: "height", 2: "width"}}
    example = torch.zeros(1, 24, 32, 3, dtype=torch.uint8)
    torch.onnx.export(network, (example,), cast(Any, stream), input_names=["pixels"], dynamic_axes=axes, dynamo=False)

    def prepare(size, threads: int) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(stream.getvalue(), options, providers=["CPUExecutionProvider"])
        return lambda pixels: cast(Any, session.run(None, {"pixels": pixels[None]})[0])[0]

    yield "ONNX Runtime fp32", prepare


def _torch(network: OnPixels):
    compiled = torch.compile(network)

    def prepare(size, threads: int) -> Run:
        torch.set_num_threads(threads)
        chosen = network if size is None else compiled  # compiling again for each size takes minutes

        def run(pixels: np.ndarray) -> np.ndarray:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                return chosen(torch.from_numpy(pixels)[None])[0].numpy()

        return run

    yield "PyTorch fp32 compiled", prepare


def quality(run: Run, data: Path, scale: int) -> tuple[dict[str, float], dict[str, float]]:
    """Mean PSNR and SSIM on each benchmark that is there. A grey picture goes in as three equal channels."""
    psnr, ssim = {}, {}
    for name in SETS:
        if not (data / name).is_dir():
            continue
        values = []
        for small, original in read_benchmark(data / name, scale).pairs:
            colour = small if small.ndim == 3 else np.repeat(small[:, :, None], 3, axis=2)
            large = run(np.ascontiguousarray(colour))[..., ::-1]
            if small.ndim == 2:
                large = np.rint(large.mean(axis=2)).astype(np.uint8)
            values.append((psnr_y(large, original, scale), ssim_y(large, original, scale)))
        psnr[name], ssim[name] = (float(mean) for mean in np.mean(values, axis=0))
    return psnr, ssim


def front(rows: list[Row], by: str) -> list[Row]:
    """Those that no other row beats in both time and PSNR on the set `by`, the quickest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda each: (each.ms, -each.psnr[by])):
        if not best or row.psnr[by] > best[-1].psnr[by]:
            best.append(row)
    return best


def sentence(rows: list[Row], by: str) -> str:
    """Who is on the front, in one sentence."""
    on_front = front(rows, by)
    ours = [row for row in on_front if row.runtime.startswith("bam ")]
    names = ", ".join(f"{row.network} ({row.runtime}, {row.psnr[by]:.2f} dB, {row.ms:.1f} ms)" for row in on_front)
    return f"{len(ours)} of {len(on_front)} on the front of PSNR on {by} against time are ours: {names}."


def draw(rows: list[Row], path: Path, by: str, threads: list[int]) -> None:
    """PSNR over milliseconds, one picture for each number of threads, the front as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(threads), figsize=(6.5 * len(threads), 5), squeeze=False, sharey=True)
    runtimes = sorted({row.runtime for row in rows}, key=lambda name: (not name.startswith("bam"), name))
    for plot, count in zip(axes[0], threads, strict=True):
        chosen = [row for row in rows if row.threads == count]
        for index, runtime in enumerate(runtimes):
            points = [row for row in chosen if row.runtime == runtime]
            marker = "*" if runtime.startswith("bam") else "os^vD"[index % 5]
            size = 110 if runtime.startswith("bam") else 32
            plot.scatter(
                [row.ms for row in points], [row.psnr[by] for row in points], s=size, marker=marker, label=runtime
            )
        line = front(chosen, by)
        plot.plot([row.ms for row in line], [row.psnr[by] for row in line], color="0.5", linewidth=1, zorder=0)
        for row in line:
            plot.annotate(row.network, (row.ms, row.psnr[by]), fontsize=7, xytext=(4, -9), textcoords="offset points")
        plot.set_xscale("log")
        for axis in (plot.xaxis.set_major_formatter, plot.xaxis.set_minor_formatter):
            axis("{x:g}")
        plot.set_xlabel(f"milliseconds, 320x180 to 1280x720, {count} thread{'s' * (count > 1)}")
        plot.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"PSNR on {by} in dB")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def processor() -> str:
    """The name of this processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> int:
    """Measure, print a table, and write what was asked for."""
    parser = argparse.ArgumentParser(description="Quality against time on this machine.")
    parser.add_argument("--rivals", type=Path, help="folder with the authors' weights")
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="folder with Set5, Set14, B100")
    parser.add_argument("--calibration", type=Path, help="folder of training pictures, for int8")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", help="networks or runtimes whose names begin so")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # tracers announce their successors at every network
    sys.stderr.write(f"{processor()}, load {os.getloadavg()[0]:.2f}\n")
    contestants = packed_contestants(args.scale)
    if args.rivals:
        contestants += rival_contestants(args.rivals, args.scale, calibration_pictures(args.calibration))
    if args.only:
        wanted = tuple(args.only)
        contestants = [
            each for each in contestants if each.network.startswith(wanted) or each.runtime.startswith(wanted)
        ]
    measured = {}
    for each in contestants:
        sys.stderr.write(f"{each.network}, {each.runtime}: quality\n")
        measured[each.network, each.runtime] = quality(each.prepare(None, max(args.threads)), args.data, args.scale)
    pixels = np.random.default_rng(0).integers(0, 256, (180, 320, 3), dtype=np.uint8)
    rows = []
    for threads in args.threads:
        runs = {}
        for each in contestants:
            run = each.prepare(pixels.shape[:2], threads)
            run(pixels)
            runs[each.network, each.runtime] = lambda run=run: run(pixels)
        for (network, runtime), time in measure(runs, rounds=args.rounds).items():
            psnr, ssim = measured[network, runtime]
            rows.append(Row(network, runtime, threads, time.median, time.high - time.low, psnr, ssim))
            shown = "  ".join(f"{name} {psnr[name]:.2f}" for name in psnr)
            sys.stdout.write(f"{threads} threads  {network:24} {runtime:22} {rows[-1].ms:8.1f} ms  {shown}\n")
    by = next(iter(rows[0].psnr), None)
    if args.csv:
        write_csv(rows, args.csv)
    if by is None:
        return 0
    for threads in args.threads:
        sys.stdout.write(f"{threads} threads: {sentence([row for row in rows if row.threads == threads], by)}\n")
    if args.plot:
        draw(rows, args.plot, by, args.threads)
    return 0


def calibration_pictures(folder: Path | None) -> list[np.ndarray]:
    """Up to 100 crops of 96x96 pixels from the pictures of a folder; noise where there is none."""
    from bam_plugin.data.images import list_images, read_image

    generator = np.random.default_rng(0)
    if folder is None:
        return [generator.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(20)]
    crops = []
    for path in list_images(folder)[:100]:
        image = read_image(path)[..., ::-1]
        top, left = (int(generator.integers(0, max(1, length - 96))) for length in image.shape[:2])
        crops.append(np.ascontiguousarray(image[top : top + 96, left : left + 96]))
    return crops


def write_csv(rows: list[Row], path: Path) -> None:
    """One line for each network, runtime and number of threads."""
    sets = list(rows[0].psnr)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["processor", "network", "runtime", "threads", "ms", "spread_ms"]
            + [f"{what}_{name}" for name in sets for what in ("psnr", "ssim")]
        )
        for row in rows:
            facts = asdict(row)
            measured = [f"{facts[what][name]:.4f}" for name in sets for what in ("psnr", "ssim")]
            writer.writerow(
                [processor(), row.network, row.runtime, row.threads, f"{row.ms:.2f}", f"{row.spread:.2f}", *measured]
            )


if __name__ == "__main__":
    sys.exit(main())
