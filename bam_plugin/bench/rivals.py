"""The rivals of the packed engine, by name, and the check that they compute the same.

Runtimes round float operations differently, and a rounding in front of a threshold can flip a sign. In many binary
layers, above all with random weights, such flips add up. So nothing is asserted of a rival's result. It is described:
the share of values that differ from the engine's by more than a hundredth of their root mean square.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bam_plugin.bench.segments import PARTS, Workload
from bam_plugin.errors import BamError, install_command

Call = Callable[[], list[np.ndarray]]
DIFFERS = 0.01  # of the root mean square


class RivalError(BamError):
    """A rival is missing, or cannot run this network."""


@dataclass(frozen=True)
class Rival:
    """One way to run a network.

    `build(workload, part)` gives a call that computes the part once, and its outputs (H, W, C).

    `module` is the package that it needs, `make` the module and function behind `build`, `options` its keywords.
    """

    name: str
    module: str
    make: str
    options: Mapping[str, Any]
    parts: tuple[str, ...] = PARTS

    def available(self) -> str | None:
        """None, or a text that says what is missing."""
        try:
            found = importlib.util.find_spec(self.module)
        except ImportError:  # an import hook raises it
            found = None
        extra = "train" if self.module == "torch" else "bench"
        return None if found else f"{self.module} is not installed; run: {install_command(extra)}"

    def build(self, workload: Workload, part: str) -> Call:
        """Prepare one part. Raises RivalError if the runtime or the network does not allow it."""
        module, function = self.make.split(":")
        make = getattr(importlib.import_module(f"bam_plugin.bench.{module}"), function)
        return make(workload, part, **self.options)

    def version(self) -> str:
        """The version of its package."""
        return getattr(importlib.import_module(self.module), "__version__", "?").partition("-")[0]


def _openvino(name: str, parts: tuple[str, ...] = PARTS, **options: Any) -> Rival:
    return Rival(f"OpenVINO {name}", "openvino", "openvino_rival:build", options, parts)


def _torch(name: str, **options: Any) -> Rival:
    return Rival(f"PyTorch {name}", "torch", "torch_rival:build", options)


RIVALS: Mapping[str, Rival] = {
    rival.name: rival
    for rival in (
        _torch("fp32"),
        _torch("bf16", bf16=True),
        _torch("fp32 compiled", compiled=True),
        _torch("bf16 compiled", bf16=True, compiled=True),
        Rival("ONNX Runtime fp32", "onnxruntime", "onnx_rival:build", {}),
        _openvino("fp32"),
        _openvino("bf16", tail="bf16", body="bf16"),
        _openvino("binary body, fp32 tail", ("whole", "body"), body="binary"),
        _openvino("binary body, bf16 tail", ("whole", "tail"), body="binary", tail="bf16"),
        _openvino("binary body, int8 tail", ("whole", "tail"), body="binary", tail="int8"),
    )
}


def choose(names: list[str] | None) -> list[Rival]:
    """The rivals whose names begin with one of `names`, whatever the case; all rivals for None."""
    if names is None:
        return list(RIVALS.values())
    chosen: dict[str, Rival] = {}
    for name in names:
        wanted = name.lower()
        exact = [rival for rival in RIVALS.values() if rival.name.lower() == wanted]
        matching = exact or [rival for rival in RIVALS.values() if rival.name.lower().startswith(wanted)]
        if not matching:
            raise RivalError(f"expected the name of a rival, one of {list(RIVALS)}, found {name!r}")
        chosen |= {rival.name: rival for rival in matching}
    return list(chosen.values())


def difference(workload: Workload, part: str, outputs: list[np.ndarray]) -> float:
    """Share of a part's output values that differ from the engine's, as the module describes it."""
    unequal = total = 0
    for name, found in zip(workload.segments[part].outputs, outputs, strict=True):
        expected = workload.values[name]
        if found.shape != expected.shape:
            raise RivalError(f"{name}: expected the shape {expected.shape}, found {found.shape}")
        limit = DIFFERS * float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
        unequal += int((~(np.abs(found - expected) <= limit)).sum())
        total += expected.size
    return unequal / total
