"""Run a packed graph by compiled kernels, or by NumPy if there are none.

Instruction sets: "avx512", "avx2", "neon" and "portable" are the compiled kernels (`program.py`), equal to the
reference (`packed/ops`) in every bit; "numpy" does the convolutions by matrix multiplication, for installations without
a compiler; "reference" is the exact and slow truth. The environment variable BAM_ISA chooses if the caller does not.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bam_plugin.engine import blas, kernels
from bam_plugin.engine.forks import restart_after_fork
from bam_plugin.engine.parameters import Weights
from bam_plugin.engine.program import KEPT_BYTES, Program
from bam_plugin.engine.tile_memory import TileMemory, graph_tile_memory
from bam_plugin.packed.errors import EngineError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import INPUT, Node
from bam_plugin.packed.integers import at_precision
from bam_plugin.packed.ops import OPERATIONS
from bam_plugin.packed.precision import FLOAT

Kernel = Callable[..., np.ndarray]
Observer = Callable[[str, np.ndarray], None]

_REFERENCE: Mapping[str, Kernel] = {name: record.reference for name, record in OPERATIONS.items()}
_KERNELS: Mapping[str, Mapping[str, Kernel]] = {"reference": _REFERENCE, "numpy": {**_REFERENCE, **blas.FASTER}}
ISA_VARIABLE = "BAM_ISA"

_log = logging.getLogger(__name__)


def available_isas() -> list[str]:
    """Names that `Engine(isa=...)` accepts on this machine, fastest first."""
    compiled = list(kernels.compiled_isas())
    # Without vector registers a matrix library is faster than portable C.
    quick = [name for name in compiled if name != "portable"]
    return [*quick, "numpy", *(name for name in compiled if name == "portable"), "reference"]


@functools.cache
def _warn_of_no_kernels() -> None:
    _log.warning(
        "bam_plugin was installed without its compiled kernels, so NumPy does their work, many times slower; install a "
        "C compiler and then bam_plugin again"
    )


def choose_isa(isa: str | None) -> str:
    """The instruction set to use: the argument, else the environment variable BAM_ISA, else the fastest."""
    available = available_isas()
    wanted = isa or os.environ.get(ISA_VARIABLE)
    if not wanted:
        wanted = available[0]
        if not kernels.compiled_isas():
            _warn_of_no_kernels()
    if wanted not in available:
        raise EngineError(f"instruction set {wanted!r} is not available here; choose one of {available}")
    return wanted


def most_threads() -> int:
    """The greatest number of threads that the kernels can use."""
    return kernels.layout().max_threads if kernels.compiled_isas() else os.cpu_count() or 1


def choose_threads(threads: int | None) -> int:
    """The number of threads: the argument, else the processors this process may use."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if type(threads) is not int or threads < 1:
        raise EngineError(f"threads must be a positive integer, found {threads!r}")
    return min(threads, most_threads())


def check_image(image: object, channels: int) -> None:
    """Raise EngineError unless `image` is a float32 array (H, W, channels) with pixels."""
    if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.ndim != 3:
        found = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise EngineError(f"the engine takes a float32 array (H, W, {channels}), found {found}")
    if image.shape[2] != channels or 0 in image.shape:
        raise EngineError(f"the network takes images of shape (H, W, {channels}), found {image.shape}")


@dataclass(frozen=True)
class _Step:
    node: Node
    kernel: Kernel
    arguments: Mapping[str, object]
    dead: tuple[str, ...]  # values that no later step reads


class _ArrayRunner:
    """One NumPy kernel per node. It frees every map as soon as its last reader is done."""

    def __init__(self, *, model: PackedModel, kernels: Mapping[str, Kernel]):
        self._output = model.graph.output
        last = {name: index for index, node in enumerate(model.graph.nodes) for name in node.inputs}
        self._steps = []
        for index, node in enumerate(model.graph.nodes):
            arguments: dict[str, object] = dict(node.attrs)
            arguments.update({role: model.tensors[name] for role, name in node.tensors.items()})
            if OPERATIONS[node.op].counts_channels:
                arguments["channels"] = model.graph.types[node.inputs[0]].channels
            touched = {*node.inputs, node.name} - {self._output}
            dead = tuple(name for name in touched if last.get(name, -1) <= index)
            self._steps.append(_Step(node, kernels[node.op], arguments, dead))

    def run(self, image: np.ndarray, threads: int, observe: Observer | None) -> np.ndarray:
        values = {INPUT: np.ascontiguousarray(image)}
        for step in self._steps:
            result = step.kernel(*(values[name] for name in step.node.inputs), **step.arguments)
            values[step.node.name] = result
            if observe is not None:
                observe(step.node.name, result)
            for name in step.dead:
                values.pop(name, None)
        return np.ascontiguousarray(values[self._output])


class _CompiledRunner:
    """Compiled kernels. Programs of the last image sizes are kept: the next tile or picture often has one of them."""

    def __init__(self, *, model: PackedModel, isa: kernels.Isa):
        self._model = model
        self._weights = Weights(isa=isa)
        self.start_anew()
        restart_after_fork(self)

    def start_anew(self) -> None:
        """Forget programs, and who is at work: a process that was forked has none of its parent's threads."""
        self._programs: OrderedDict[tuple[int, int], Program] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, image: np.ndarray, threads: int, observe: Observer | None) -> np.ndarray:
        height, width, _ = image.shape
        if observe is not None:
            program = Program(model=self._model, weights=self._weights, height=height, width=width, keep=True)
            result = program.run(image, threads)
            for node in self._model.graph.nodes:
                observe(node.name, program.value(node.name))
            return result
        with self._lock:
            return self._program(height, width).run(image, threads)

    def _program(self, height: int, width: int) -> Program:
        wanted = self._programs.pop((height, width), None)
        while sum(program.bytes for program in self._programs.values()) > KEPT_BYTES:
            self._programs.popitem(last=False)  # frees buffers before others are made
        if wanted is None:
            wanted = Program(model=self._model, weights=self._weights, height=height, width=width)
        self._programs[height, width] = wanted
        return wanted


class Engine:
    """A packed network ready to run.

    `isa`, `threads` and `precision` are the choices in force. Results do not depend on `threads`. `precision` is that
    of the float layers behind the last sign: "fp32", or "int8" or "int16" if the file offers it (`bam quantize`).
    Several threads may use one engine. Its runs then wait for each other.
    """

    def __init__(
        self, model: PackedModel, *, isa: str | None = None, threads: int | None = None, precision: str = FLOAT
    ):
        self.model = model
        self.precision = precision
        self.isa = choose_isa(isa)
        self.threads = choose_threads(threads)
        compiled = kernels.compiled_isas().get(self.isa)
        run = at_precision(model, precision)
        self._runner = (
            _ArrayRunner(model=run, kernels=_KERNELS[self.isa])
            if compiled is None
            else _CompiledRunner(model=run, isa=compiled)
        )

    def run(self, image: np.ndarray, *, observe: Observer | None = None) -> np.ndarray:
        """Upscale one image: float32 (H, W, C) -> float32 (H * scale, W * scale, C_out), not clipped.

        For a network with strides the last row and column are repeated up to a multiple of `graph.size_multiple`.

        `observe(name, value)` is called with every node's result (float map or sign words), for comparisons.
        Raises EngineError if the image is not float32, has no pixel or has another number of channels.
        """
        check_image(image, self.model.num_in_ch)
        height, width, _ = image.shape
        multiple, scale = self.model.graph.size_multiple, self.model.scale
        pads = [(0, -height % multiple), (0, -width % multiple), (0, 0)]
        fitted = np.pad(image, pads, mode="edge") if multiple > 1 else image
        return self._runner.run(fitted, self.threads, observe)[: height * scale, : width * scale]

    def tile_memory(self) -> TileMemory:
        """The memory of a tile, estimated from above."""
        return graph_tile_memory(self.model, compiled=self.isa in kernels.compiled_isas())
