"""`bam bench`: how fast a packed file runs here, against PyTorch and against the bound of the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bam_plugin import __version__
from bam_plugin.errors import BamError
from bam_plugin.packed import kernels, timing
from bam_plugin.packed.engine import available_isas
from bam_plugin.packed.format import PackedModel, read_packed


class BenchError(BamError):
    """The arguments of `bam bench` cannot be served."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", type=Path, help="packed file")
    parser.add_argument("--size", default="320x180", help="input width x height (default 320x180)")
    parser.add_argument("-j", "--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default 1 2)")
    parser.add_argument(
        "--isa", nargs="+", help="instruction sets (default: the vector ones; numpy where there is none)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="measured calls of each rival (default 15)")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise BenchError(f"--size takes WIDTHxHEIGHT such as 320x180, found {text!r}")
    return int(parts[1]), int(parts[0])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _torch_rivals(model: PackedModel, image: np.ndarray, threads: int) -> dict[str, Callable[[], object]]:
    """PyTorch on the same architecture, built from the options in the file; its weights do not matter for time."""
    import torch

    from bam_plugin.packed.converter import build_network

    torch.set_num_threads(threads)
    section: Any = model.metadata["network_g"]
    network = build_network(section).eval().to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)

    def run(*, bf16: bool) -> object:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return network(pixels)

    return {"PyTorch fp32": lambda: run(bf16=False), "PyTorch bf16": lambda: run(bf16=True)}


def _measure(args: argparse.Namespace, model: PackedModel, image: np.ndarray) -> dict[str, Any]:
    height, width, _ = image.shape
    isas = args.isa or [isa for isa in available_isas() if isa not in ("numpy", "portable", "reference")] or ["numpy"]
    best = next((isa for isa in isas if isa in kernels.compiled_isas()), None)
    skipped = ["ONNX Runtime, OpenVINO: not measured by this version"]
    results: dict[str, Any] = {}
    for threads in args.threads:
        rivals = timing.engine_rivals(model, image, isas=isas, threads=threads)
        if args.no_torch:
            skipped.append("PyTorch: --no-torch")
        elif "network_g" not in model.metadata:
            skipped.append("PyTorch: the file does not record the network's options")
        else:
            try:
                rivals |= _torch_rivals(model, image, threads)
            except (ImportError, BamError) as error:
                skipped.append(f"PyTorch: {error}")
        for name, result in timing.measure(rivals, rounds=args.rounds).items():
            results.setdefault(name, {})[str(threads)] = vars(result)
    facts: dict[str, Any] = {"rivals": results, "skipped": sorted(set(skipped))}
    if best is not None:
        bound = timing.popcount_bound(model, height, width, isa=best)
        body = results[f"{best} body"].get("1")
        facts["popcount_bound"] = {"isa": best, "milliseconds": bound}
        if body is not None:
            facts["popcount_bound"]["body_over_bound"] = body["median"] / bound
        facts["peak_memory_bytes"] = timing.peak_memory(args.file, height, width, isa=best, threads=args.threads[-1])
    return facts


def _markdown(facts: dict[str, Any], threads: list[int]) -> str:
    lines = [
        f"{facts['file']}, {facts['size']}, {facts['processor']}, {facts['processors']} processors, "
        f"bam-plugin {__version__}, NumPy {np.__version__}. Milliseconds, medians (quartiles) of {facts['rounds']}.",
        "",
        "| what | " + " | ".join(f"{count} thread{'s' * (count > 1)}" for count in threads) + " |",
        "|---|" + "---|" * len(threads),
    ]
    for name, by_threads in facts["rivals"].items():
        cells = [by_threads[str(count)] for count in threads]
        lines.append(
            f"| {name} | " + " | ".join(f"{c['median']:.1f} ({c['low']:.1f}-{c['high']:.1f})" for c in cells) + " |"
        )
    if "popcount_bound" in facts:
        bound = facts["popcount_bound"]
        ratio = f"; the body takes {bound['body_over_bound']:.2f} times that" if "body_over_bound" in bound else ""
        lines += ["", f"Bound of {bound['isa']} on 1 thread, counting alone: {bound['milliseconds']:.1f} ms{ratio}."]
        lines.append(f"Peak memory of a run: {facts['peak_memory_bytes'] / 1e6:.0f} MB above the loaded program.")
    return "\n".join([*lines, *(f"Skipped: {line}." for line in facts["skipped"])])


def run(args: argparse.Namespace) -> int:
    """Measure and print a Markdown table, or JSON."""
    model = read_packed(args.file)
    height, width = _size(args.size)
    if args.rounds < 1 or min(args.threads) < 1:
        raise BenchError("--rounds and --threads must be positive")
    image = np.random.default_rng(0).random((height, width, model.num_in_ch), dtype=np.float32)
    facts = {
        "file": args.file.name,
        "size": f"{width}x{height}",
        "processor": _processor(),
        "processors": os.cpu_count(),
        "rounds": args.rounds,
        **_measure(args, model, image),
    }
    text = json.dumps(facts, indent=2) if args.json else _markdown(facts, args.threads)
    sys.stdout.write(text + "\n")
    return 0
