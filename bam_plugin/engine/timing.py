"""Measure the time of a packed network: parts of it per instruction set, the bound of the machine, peak memory.

Rivals take turns with the engine, one call each per round, so that a disturbance of the machine hits all of them. The
report has medians and quartiles.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bam_plugin.engine import kernels
from bam_plugin.engine.engine import Engine
from bam_plugin.engine.parameters import Weights
from bam_plugin.engine.program import Program
from bam_plugin.packed.bits import words_for
from bam_plugin.packed.errors import EngineError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.integers import at_precision
from bam_plugin.packed.precision import FLOAT, read_offers

_MEMORY_PROGRAM = """
import resource, sys
import numpy as np
from bam_plugin.engine import Engine
from bam_plugin.packed import read_packed

def peak():
    try:
        # On Linux getrusage starts with the peak of the process that started this one; this number does not.
        with open("/proc/self/status") as status:
            return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

path, isa, threads, height, width = sys.argv[1:]
engine = Engine(read_packed(path), isa=isa, threads=int(threads))
image = np.random.default_rng(0).random((int(height), int(width), engine.model.num_in_ch), dtype=np.float32)
before = peak()
engine.run(image)
print(peak() - before)
"""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one rival: median, lower and upper quartile over `rounds` calls."""

    median: float
    low: float
    high: float
    rounds: int


Key = TypeVar("Key", bound=Hashable)


def measure(
    rivals: Mapping[Key, Callable[[], object]],
    *,
    rounds: int,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, Timing]:
    """Call each rival once per round, in turns, after a call to warm up where `warm`; `clock` tells seconds."""
    times: dict[Key, list[float]] = {name: [] for name in rivals}
    for call in rivals.values() if warm else ():
        call()
    for _ in range(rounds):
        for name, call in rivals.items():
            start = clock()
            call()
            times[name].append(1e3 * (clock() - start))
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return Timing(statistics.median(ordered), ordered[quarter], ordered[-1 - quarter], len(ordered))


def engine_rivals(
    model: PackedModel, image: np.ndarray, *, isas: list[str], threads: int
) -> dict[str, Callable[[], object]]:
    """The whole network and, with compiled kernels, its body and tail, by instruction set and offered precision."""
    height, width, _ = image.shape
    rivals: dict[str, Callable[[], object]] = {}
    for isa, precision in itertools.product(isas, (FLOAT, *read_offers(model.graph, model.metadata))):
        engine = Engine(model, isa=isa, threads=threads, precision=precision)
        name = isa if precision == FLOAT else f"{isa} {precision}"
        rivals[f"{name} whole"] = lambda engine=engine: engine.run(image)
        compiled = kernels.compiled_isas().get(isa)
        if compiled is not None:
            run = at_precision(model, precision)
            program = Program(model=run, weights=Weights(isa=compiled), height=height, width=width)
            program.run(image, threads)
            rivals[f"{name} body"] = lambda program=program: program.run_body(threads)
            rivals[f"{name} tail"] = lambda program=program: program.run_tail(threads)
    return rivals


def register_steps(model: PackedModel, height: int, width: int, lanes: int) -> int:
    """Register steps (xor + popcount + add) that the binary convolutions need at one image size."""
    total = 0
    for node in model.graph.nodes:
        if node.op == "binary_conv2d":
            source = model.graph.types[node.inputs[0]]
            filters = model.tensors[node.tensors["weight"]].shape[0]
            pixels = int(height * width * source.up**2)
            steps = int(node.attrs["kernel"]) ** 2 * words_for(source.channels)
            total += 2 * pixels * steps * -(-kernels.stride_of(filters) // lanes)
    return total


def popcount_bound(
    model: PackedModel, height: int, width: int, *, isa: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Milliseconds on one thread if the binary convolutions only counted bits, on this machine now."""
    compiled = kernels.compiled_isas().get(isa)
    if compiled is None:
        raise EngineError(
            f"the bound is that of compiled kernels, {isa!r} is none of {sorted(kernels.compiled_isas())}"
        )
    steps = 24_000_000
    timing = measure({"steps": lambda: kernels.count_steps(compiled, steps)}, rounds=7, clock=clock)["steps"]
    return timing.median / steps * register_steps(model, height, width, compiled.lanes)


def peak_memory(path: str | os.PathLike, height: int, width: int, *, isa: str, threads: int) -> int:
    """Bytes that one run adds to the peak of a fresh process which has loaded the file."""
    arguments = [str(path), isa, str(threads), str(height), str(width)]
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY_PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EngineError(f"the memory measurement failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)
