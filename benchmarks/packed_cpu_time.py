"""CPU time on one thread of packed networks and of PyTorch fp32, for machines that are never quite idle.

Wall time of a disturbed machine says little; the processor time of one thread still shows what a change of the kernels
does. `bam bench` measures wall time. Usage: python benchmarks/packed_cpu_time.py [body64 body48 light paper]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from bam_plugin.conversion.lowering import lower_network
from bam_plugin.engine import kernels
from bam_plugin.engine.parameters import Weights
from bam_plugin.engine.program import Program
from bam_plugin.engine.timing import register_steps
from bam_plugin.nn import HPBBlock
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.integers import with_integers
from bam_plugin.packed.precision import FLOAT, INTEGERS, Offer, reducible_convs
from bam_plugin.toolbox.networks import build_network

HEIGHT, WIDTH = 180, 320
ROUNDS = 5
STEPS = 24_000_000  # of the micro-benchmark behind the bound
NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "body64": (64, lambda: nn.Sequential(*(HPBBlock(num_feat=64, num_lb=2) for _ in range(12)))),
    "body48": (48, lambda: nn.Sequential(*(HPBBlock(num_feat=48, num_lb=2) for _ in range(20)))),
    "light": (3, lambda: build_network({"type": "BSRN", "upsampler": "pixelshuffledirect"})),
    "paper": (3, lambda: build_network({"type": "BSRN", "upsampler": "pixelshuffle"})),
}


def cpu_milliseconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def with_unit_ranges(model: PackedModel, precision: str) -> PackedModel:
    """`model` at a precision of integers with ranges of 1, which give no picture but take the same time."""
    ranges = {name: (1.0,) * channels for name, channels in reducible_convs(model.graph).items()}
    return with_integers(model, Offer(kind=INTEGERS[precision], ranges=ranges, cost={}, calibration={}))


def network_milliseconds(
    networks: Mapping[str, nn.Module], *, precision: str = FLOAT, rounds: int = 9
) -> dict[str, float]:
    """Processor time of one thread on the packed engine, medians of calls in turns; without what cannot be packed."""
    image = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), dtype=np.float32)
    weights = Weights(isa=next(iter(kernels.compiled_isas().values())))
    programs: dict[str, Program] = {}
    for name, network in networks.items():
        try:
            graph, tensors, _ = lower_network(network, num_in_ch=3)
        except ConversionError:
            continue
        model = PackedModel(graph=graph, tensors=tensors)
        if precision != FLOAT:
            model = with_unit_ranges(model, precision)
        programs[name] = Program(model=model, weights=weights, height=HEIGHT, width=WIDTH)
        programs[name].run(image, 1)
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            times[name].append(cpu_milliseconds(lambda program=program: program.run(image, 1)))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(channels: int, network: nn.Module) -> None:
    """Print the rows of one network."""
    pixels = torch.rand(1, channels, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last)
    image = np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())
    graph, tensors, _ = lower_network(network, num_in_ch=channels)
    model = PackedModel(graph=graph, tensors=tensors)
    calls: dict[str, Callable[[], object]] = {"PyTorch fp32": lambda: network(pixels)}
    bounds: dict[str, float] = {}
    for isa in kernels.compiled_isas().values():
        if isa.name == "portable":
            continue
        program = Program(model=model, weights=Weights(isa=isa), height=HEIGHT, width=WIDTH)
        calls[f"{isa.name} whole"] = lambda program=program: program.run(image, 1)
        calls[f"{isa.name} body"] = lambda program=program: program.run_body(1)
        quickest = min(cpu_milliseconds(lambda isa=isa: kernels.count_steps(isa, STEPS)) for _ in range(5))
        bounds[f"{isa.name} body"] = quickest / STEPS * register_steps(model, HEIGHT, WIDTH, isa.lanes)
    with torch.inference_mode():
        for what, call in calls.items():
            median = statistics.median(cpu_milliseconds(call) for _ in range(ROUNDS))
            ratio = f"{median / bounds[what]:.2f}" if what in bounds else ""
            print(f"| {what} | {median:.0f} | {ratio} |")


def main(names: list[str]) -> None:
    """Measure the networks `names`, or all."""
    torch.set_num_threads(1)
    print("| what | CPU ms | over the bound of counting |\n|---|---|---|")
    for name in names or list(NETWORKS):
        channels, make = NETWORKS[name]
        print(f"| **{name}** | | |")
        measure(channels, make().eval().to(memory_format=torch.channels_last))


if __name__ == "__main__":
    main(sys.argv[1:])
