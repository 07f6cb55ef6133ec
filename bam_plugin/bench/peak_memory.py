"""Peak memory of a rival: `python -m bam_plugin.bench.peak_memory FILE RIVAL THREADS HEIGHT WIDTH` prints bytes.

It runs in a process of its own. It measures from the state where the rival's package and the file are loaded to the
peak of a run after the first one. So buffers and converted weights count, and memory that compiling needed for a while
does not.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np

from bam_plugin.bench.rivals import RIVALS, RivalError
from bam_plugin.bench.segments import make_workload
from bam_plugin.packed.format import read_packed

_STATUS = Path("/proc/self/status")


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def peak_memory(path: Path, rival: str, *, threads: int, height: int, width: int) -> int:
    """Peak memory in bytes, as the module describes it.

    Raises RivalError where the system has no /proc or the measurement fails.
    """
    if not _STATUS.exists():
        raise RivalError("memory of rivals is measured on Linux only")
    numbers = [str(number) for number in (threads, height, width)]
    command = [sys.executable, "-m", "bam_plugin.bench.peak_memory", str(path), rival, *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RivalError(f"its memory measurement failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout.split()[-1])


def _measure(path: str, name: str, threads: int, height: int, width: int) -> int:
    rival, model = RIVALS[name], read_packed(path)
    importlib.import_module(rival.module)
    image = np.random.default_rng(0).random((height, width, model.num_in_ch), dtype=np.float32)
    workload = make_workload(model, image, threads=threads)
    before = _status("VmRSS")
    call = rival.build(workload, "whole")
    call()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    call()
    return max(0, _status("VmHWM") - before)


if __name__ == "__main__":
    file, name, *numbers = sys.argv[1:]
    sys.stdout.write(f"{_measure(file, name, *map(int, numbers))}\n")
