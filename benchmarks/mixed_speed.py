"""A mixed network against the same network float-simulated and full precision: file size and CPU time on one thread.

Usage: python benchmarks/mixed_speed.py [HEIGHT WIDTH]. The host is RCAN x4 with 64 channels, 2 groups of 6 blocks; its
3x3 convolutions are binary but for the first and last, those of the upsampler too. Calls alternate; it prints medians.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from bam_plugin.conversion.converter import convert_network
from bam_plugin.engine.engine import available_isas
from bam_plugin.mixed.mixed_engine import MixedEngine
from bam_plugin.packed.format import unpack_any
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.toolbox.networks import build_network

HOST = {
    **{"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_group": 2, "num_block": 6},
    **{"squeeze_factor": 16, "upscale": 4},
}
ROUNDS = 5


def cpu_milliseconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    """Measure and print."""
    height, width = map(int, sys.argv[1:] or ("90", "160"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    section = {"type": "Binarized", "host": HOST, "recipe": {"binarizer": "bam"}}
    simulated = build_network(section).eval().to(memory_format=torch.channels_last)
    full = build_network(HOST).eval().to(memory_format=torch.channels_last)
    conversion = convert_network(simulated, metadata={"network_g": section}, verify=False)
    model = unpack_any(conversion.data)
    assert isinstance(model, MixedModel)
    buffer = io.BytesIO()
    torch.save(simulated.state_dict(), buffer)
    image = torch.rand(1, 3, height, width).contiguous(memory_format=torch.channels_last)
    pixels = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    calls: dict[str, Callable[[], object]] = {
        "full precision": lambda: full(image),
        "simulated": lambda: simulated(image),
    }
    for isa in available_isas():
        if isa in ("avx512", "avx2", "neon"):
            engine = MixedEngine(model, isa=isa, threads=1)
            calls[f"mixed, {isa}"] = lambda engine=engine: engine.run(pixels)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            for name, call in calls.items():
                times[name].append(cpu_milliseconds(call))
    print(f"{height}x{width}, checkpoint {buffer.tell():,} bytes, file {len(conversion.data):,} bytes")
    for name, values in times.items():
        print(
            f"{name:<16} {statistics.median(values[1:]):8.0f} ms (from {min(values[1:]):.0f} to {max(values[1:]):.0f})"
        )


if __name__ == "__main__":
    main()
