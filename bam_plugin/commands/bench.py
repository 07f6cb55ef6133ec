"""`bam bench`: measure a packed file on this machine, beside other runtimes and the bound of the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bam_plugin import __version__
from bam_plugin.bench.rivals import choose
from bam_plugin.bench.segments import PARTS
from bam_plugin.bench.session import Session, clock_of, measure_memory, run_session
from bam_plugin.engine import kernels, timing
from bam_plugin.engine.engine import available_isas, most_threads
from bam_plugin.errors import BamError
from bam_plugin.packed.format import read_packed
from bam_plugin.packed.zoo import find_model

MAX_SIDE = 16384  # pixels


class BenchError(BamError):
    """The arguments of `bam bench` are wrong."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", help="packed file or a network of the zoo, such as bsrn_light_x4")
    parser.add_argument("--size", default="320x180", help="input width x height (default 320x180)")
    parser.add_argument("-j", "--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default 1 2)")
    parser.add_argument(
        "--isa", nargs="+", help="instruction sets (default: the vector ones; numpy where there is none)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="measured calls of each rival (default 15)")
    parser.add_argument(
        "--rivals",
        nargs="*",
        metavar="NAME",
        help="names of rivals or their beginnings, such as PyTorch 'OpenVINO binary' (default: all; "
        "without a name: the engine alone)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time of all threads, for busy machines (best with -j 1)"
    )
    parser.add_argument("--rival-memory", action="store_true", help="measure the peak memory of the rivals, too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and 0 < int(part) <= MAX_SIDE for part in parts):
        raise BenchError(f"--size takes WIDTHxHEIGHT such as 320x180, up to {MAX_SIDE} each, found {text!r}")
    return int(parts[1]), int(parts[0])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _command(args: argparse.Namespace) -> str:
    words = ["bam", "bench", Path(args.file).name, "--size", args.size, "--rounds", str(args.rounds)]
    words += ["-j", *map(str, args.threads), "--parts", *args.parts]
    words += ["--rivals", *args.rivals] if args.rivals is not None else []
    words += ["--isa", *args.isa] if args.isa else []
    words += ["--cpu-time"] if args.cpu_time else []
    words += ["--rival-memory"] if args.rival_memory else []
    return shlex.join(words)


def _markdown(facts: dict[str, Any], session: Session, threads: list[int], parts: list[str]) -> str:
    columns = [(part, str(count)) for part in parts for count in threads]
    clock = " of processor time" if facts["cpu_time"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"{facts['file']}, {facts['size']}, {facts['processor']}, {facts['processors']} processors, {versions}.",
        f"`{facts['command']}`: milliseconds{clock}, medians (quartiles) of {facts['rounds']}.",
        "",
        "| | " + " | ".join(f"{part}, {count}T" for part, count in columns) + " | differs | memory |",
        "|---|" + "--:|" * (len(columns) + 2),
    ]
    for name, by_part in session.timings.items():
        cells = [by_part.get(part, {}).get(count) for part, count in columns]
        texts = ["" if cell is None else f"{cell.median:.1f} ({cell.low:.1f}-{cell.high:.1f})" for cell in cells]
        differs, memory = session.differs.get(name, {}), session.memory.get(name)
        texts.append(" / ".join(f"{differs[part]:.2%}" for part in parts if part in differs))
        texts.append("" if memory is None else f"{memory / 1e6:.0f} MB")
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    lines += [
        "",
        "Differs: share of the values of each part that are further from the engine's than a hundredth of their root "
        "mean square. Memory: peak of a run of the whole network above the program that has loaded the file.",
    ]
    if "popcount_bound" in facts:
        bound = facts["popcount_bound"]
        ratio = f"; the body takes {bound['body_over_bound']:.2f} times that" if "body_over_bound" in bound else ""
        lines.append(f"Bound of {bound['isa']} on 1 thread, counting alone: {bound['milliseconds']:.1f} ms{ratio}.")
    return "\n".join([*lines, *(f"Skipped: {line}." for line in session.skipped)])


def run(args: argparse.Namespace) -> int:
    """Measure and print a Markdown table, or JSON."""
    path = find_model(args.file)
    model = read_packed(path)
    height, width = _size(args.size)
    if args.rounds < 1 or not all(1 <= count <= most_threads() for count in args.threads):
        raise BenchError(f"--rounds must be positive, --threads from 1 to {most_threads()}")
    args.threads = list(dict.fromkeys(args.threads))
    rivals = choose(args.rivals)
    image = np.random.default_rng(0).random((height, width, model.num_in_ch), dtype=np.float32)
    isas = args.isa or [isa for isa in available_isas() if isa not in ("numpy", "portable", "reference")] or ["numpy"]
    session = run_session(
        model,
        image,
        isas=isas,
        rivals=rivals,
        parts=args.parts,
        threads=args.threads,
        rounds=args.rounds,
        cpu_time=args.cpu_time,
    )
    best = next((isa for isa in isas if isa in kernels.compiled_isas()), isas[0])
    measure_memory(
        session,
        path,
        height=height,
        width=width,
        isa=best,
        threads=args.threads[-1],
        rivals=rivals if args.rival_memory else (),
    )
    facts: dict[str, Any] = {
        "file": path.name,
        "size": f"{width}x{height}",
        "command": _command(args),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "rounds": args.rounds,
        "cpu_time": args.cpu_time,
        "versions": {"bam-plugin": __version__, "NumPy": np.__version__, **session.versions},
    }
    if best in kernels.compiled_isas():
        bound = timing.popcount_bound(model, height, width, isa=best, clock=clock_of(args.cpu_time))
        facts["popcount_bound"] = {"isa": best, "milliseconds": bound}
        body = session.timings[f"bam {best}"].get("body", {}).get("1")
        if body is not None and bound:
            facts["popcount_bound"]["body_over_bound"] = body.median / bound
    if args.json:
        text = json.dumps(facts | asdict(session), indent=2)
    else:
        text = _markdown(facts, session, args.threads, args.parts)
    sys.stdout.write(text + "\n")
    return 0
