"""One run of `bam bench`: for each number of threads, the parts of the engine and of its rivals take turns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bam_plugin.bench import peak_memory
from bam_plugin.bench.rivals import Rival, RivalError, difference
from bam_plugin.bench.segments import make_workload
from bam_plugin.engine import kernels, timing
from bam_plugin.errors import BamError
from bam_plugin.packed.format import PackedModel

_log = logging.getLogger(__name__)
Runner = tuple[str, str]  # name and part


@dataclass
class Session:
    """Results: `timings[name][part][threads]`, `differs[name][part]` (shares), `memory[name]` (bytes).

    `skipped` has one line for each thing that was not measured, with the reason.
    """

    timings: dict[str, dict[str, dict[str, timing.Timing]]] = field(default_factory=dict)
    differs: dict[str, dict[str, float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def skip(self, text: str) -> None:
        """Note a line in `skipped` once."""
        if text not in self.skipped:
            self.skipped.append(text)


def clock_of(cpu_time: bool) -> Callable[[], float]:
    """The clock of the process, or the clock of the wall, in seconds."""
    return time.process_time if cpu_time else time.perf_counter


def run_session(
    model: PackedModel,
    image: np.ndarray,
    *,
    isas: list[str],
    rivals: Sequence[Rival],
    parts: Sequence[str],
    threads: Sequence[int],
    rounds: int,
    cpu_time: bool = False,
) -> Session:
    """Measure. A rival that is missing or fails on this network is skipped.

    With `cpu_time` the clock is that of the process. It counts the time of all its threads together, whatever else
    runs.
    """
    clock = clock_of(cpu_time)
    session = Session()
    present = []
    for rival in rivals:
        missing = rival.available()
        if missing is None:
            present.append(rival)
        else:
            session.skip(f"{rival.name}: {missing}")
    for count in threads:
        calls: dict[Runner, Callable[[], object]] = {}
        for name, call in timing.engine_rivals(model, image, isas=isas, threads=count).items():
            isa, _, part = name.rpartition(" ")
            if part in parts:
                calls[f"bam {isa}", part] = call
                call()
        if present:
            workload = make_workload(model, image, threads=count)
            for rival in present:
                calls |= _prepare(session, rival, workload, parts)
        for (name, part), result in timing.measure(calls, rounds=rounds, warm=False, clock=clock).items():
            session.timings.setdefault(name, {}).setdefault(part, {})[str(count)] = result
    return session


def _prepare(session: Session, rival: Rival, workload: Any, parts: Sequence[str]) -> dict[Runner, Callable[[], object]]:
    """The calls of one rival. Each result is compared with the engine's."""
    calls: dict[Runner, Callable[[], object]] = {}
    for part in rival.parts:
        if part not in parts:
            continue
        if part not in workload.segments:
            session.skip(f"{rival.name}, {part}: the network has no {part} of its own")
            continue
        _log.info("%s, %s, %d threads: building", rival.name, part, workload.threads)
        try:
            call = rival.build(workload, part)
            session.differs.setdefault(rival.name, {})[part] = difference(workload, part, call())
        except (BamError, ImportError, RuntimeError) as error:  # the runtimes themselves raise RuntimeError
            session.skip(f"{rival.name}, {part}: {(str(error) or type(error).__name__).splitlines()[0]}")
            continue
        calls[rival.name, part] = call
        session.versions[rival.module] = rival.version()
    return calls


def measure_memory(
    session: Session, path: Path, *, height: int, width: int, isa: str, threads: int, rivals: Sequence[Rival]
) -> None:
    """Measure the peak memory of whole runs of the engine and of the rivals that were measured."""
    if isa in kernels.compiled_isas():
        session.memory[f"bam {isa}"] = timing.peak_memory(path, height, width, isa=isa, threads=threads)
    for rival in rivals:
        if "whole" in session.timings.get(rival.name, {}):
            try:
                session.memory[rival.name] = peak_memory.peak_memory(
                    path, rival.name, threads=threads, height=height, width=width
                )
            except RivalError as error:
                session.skip(f"{rival.name}: {error}")
