"""Training speed and peak memory of BSRN: the plain modules in float32 against each step of the fast path.

    python benchmarks/train_speed.py --num_hpb 4 --batch 8 --patch 24 --upsampler pixelshuffledirect
    python benchmarks/train_speed.py --num_hpb 20 --batch 16 --patch 48 --threads 2 --rounds 3

The variants take turns in one process, an iteration each, so a busy machine slows all of them alike: trust the ratios.
An iteration is forward, L1 loss, backward and an Adam step on random data. Peak memory (`--memory`) comes from one
process per variant: what an iteration adds at most to the resident set that is left between two of them. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import bam_plugin.archs  # noqa: F401  (repairs BasicSR before it is imported)
from bam_plugin.archs.bsrn_arch import BSRN
from bam_plugin.models import autocast
from bam_plugin.nn.fast import fused, native


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train the same network."""

    fused: bool = True
    native: bool = False
    channels_last: bool = False
    precision: str = "float32"
    fused_optimizer: bool = False


VARIANTS = {
    "plain float32": Variant(fused=False),
    "plain channels_last": Variant(fused=False, channels_last=True),
    "plain channels_last bf16": Variant(fused=False, channels_last=True, precision="bf16"),
    "fused float32": Variant(),
    "fused channels_last": Variant(channels_last=True),
    "fused channels_last bf16": Variant(channels_last=True, precision="bf16"),
    "the same, compiled passes": Variant(channels_last=True, precision="bf16", native=True),
    "the same, fused Adam": Variant(channels_last=True, precision="bf16", native=True, fused_optimizer=True),
}


def make_step(variant: Variant, args: argparse.Namespace) -> Callable[[], None]:
    """A function that trains one iteration."""
    torch.manual_seed(0)
    network = BSRN(num_hpb=args.num_hpb, num_feat=args.num_feat, upsampler=args.upsampler).train()
    lq = torch.rand(args.batch, 3, args.patch, args.patch)
    gt = torch.rand(args.batch, 3, 4 * args.patch, 4 * args.patch)
    if variant.channels_last:
        network = network.to(memory_format=torch.channels_last)
        lq = lq.contiguous(memory_format=torch.channels_last)
    with fused.switched(variant.fused):
        autocast.prepare(network, variant.precision)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=variant.fused_optimizer)

    def step() -> None:
        with fused.switched(variant.fused), native.switched(variant.native):
            optimizer.zero_grad(set_to_none=True)
            with autocast.autocast(lq.device, variant.precision):
                output = network(lq)
            torch.nn.functional.l1_loss(output.float(), gt).backward()
            optimizer.step()

    return step


def peak_memory(variant: Variant, args: argparse.Namespace) -> float:
    """MiB that an iteration adds at most to the resident set of this process."""
    torch.set_num_threads(args.threads)
    step = make_step(variant, args)
    # Libraries that load on first use, generated code and optimizer states are no part of the difference.
    step()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in range(2):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def main() -> None:
    """Measure the variants in turn and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_hpb", type=int, default=20)
    parser.add_argument("--num_feat", type=int, default=48)
    parser.add_argument("--upsampler", default="pixelshuffle")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="iterations per variant")
    parser.add_argument("--only", default="", help="regular expression; the first variant always runs")
    parser.add_argument("--memory", action="store_true", help="peak memory too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = [name for index, name in enumerate(VARIANTS) if index == 0 or re.search(args.only, name)]

    memory = {}
    if args.memory:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for name in names:
                memory[name] = pool.apply(peak_memory, (VARIANTS[name], args))
    steps = {name: make_step(VARIANTS[name], args) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    setting = f"batch {args.batch}, LR patch {args.patch}, {args.threads} thread(s)"
    print(f"BSRN x4, {args.num_hpb} HPB, {args.upsampler}, {setting}")
    first = names[0]
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(times[first], times[name], strict=True))
        median, least = 1e3 * statistics.median(times[name]), 1e3 * min(times[name])
        line = f"{name:26s} {median:8.1f} ms (least {least:8.1f})  {ratio:5.2f}x"
        if name in memory:
            line += f"  peak {memory[name]:7.0f} MiB ({memory[name] / memory[first] - 1:+.0%})"
        print(line, flush=True)


if __name__ == "__main__":
    main()
