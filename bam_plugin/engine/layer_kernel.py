"""One packed binary convolution on its own: thresholds, bits, counts, scales, by the kernels of the engine.

It is for networks that run elsewhere (in torch, see `torch_module.py`) and hand over one layer at a time. The layer is
a small graph of the ordinary operations, so its results equal the reference in every bit. If the caller's memory has
the layout of the kernels, they read and write it directly.
"""

from __future__ import annotations

import threading

import numpy as np

from bam_plugin.engine import kernels
from bam_plugin.engine.engine import Engine, check_image, choose_isa
from bam_plugin.engine.forks import restart_after_fork
from bam_plugin.engine.parameters import Weights
from bam_plugin.engine.program import Program
from bam_plugin.packed.errors import EngineError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import INPUT
from bam_plugin.packed.graph_builder import GraphBuilder


def layer_model(
    *, weight: np.ndarray, scale: np.ndarray, threshold: np.ndarray, flip: np.ndarray, kernel: int, alphabet: str
) -> PackedModel:
    """The graph of a layer: sum over activation bases n, weight bases m (m first) of scale[n, m] times a dot product.

    Tensors as in `mixed_format.PackedLayer`.
    """
    builder = GraphBuilder(num_in_ch=threshold.shape[1])
    filters = [np.ascontiguousarray(base) for base in weight]
    total = None
    for base in range(len(threshold)):
        tensors = {"threshold": threshold[base], "flip": flip[base]}
        signs = builder.add("threshold", "signs", builder.input, tensors=tensors)
        for bits, factor in zip(filters, scale[base], strict=True):
            attrs = {"kernel": kernel, "alphabet": alphabet}
            term = builder.add("binary_conv2d", "conv", signs, attrs=attrs, tensors={"weight": bits, "scale": factor})
            total = term if total is None else builder.add("add", "sum", total, term)
    assert total is not None
    return PackedModel(graph=builder.finish(total), tensors=builder.tensors)


class _LayerProgram(Program):
    """A program that reads and writes the caller's memory instead of its own."""

    def __init__(self, *, model: PackedModel, weights: Weights, height: int, width: int):
        super().__init__(model=model, weights=weights, height=height, width=width)
        self._ends = [self._refs[INPUT], self._refs[model.graph.output]]
        for name in (INPUT, model.graph.output):
            self._buffers[name] = self._buffers[name][:0].copy()  # gives back memory that was never used

    def run_between(self, source: np.ndarray, result: np.ndarray, threads: int) -> None:
        """float32 (H, W, C) -> `result` (H, W, O), both with the strides of the kernels."""
        for index, array in zip(self._ends, (source, result), strict=True):
            self._map_array[index].data = array.ctypes.data
        self.run_body(threads)


class LayerKernel:
    """A packed layer ready to run on maps of any size. Results do not depend on the number of threads.

    It does one run at a time, and others wait. The arguments are those of `layer_model`, and `isa` is that of `Engine`.
    """

    def __init__(self, *, isa: str | None = None, **layer):
        self.model = layer_model(**layer)
        self.isa = choose_isa(isa)
        compiled = kernels.compiled_isas().get(self.isa)
        self._weights = None if compiled is None else Weights(isa=compiled)
        self._engine = Engine(self.model, isa=self.isa, threads=1) if compiled is None else None
        self.start_anew()
        restart_after_fork(self)

    def start_anew(self) -> None:
        """Forget the program, and who is at work with it."""
        self._program: _LayerProgram | None = None
        self._lock = threading.Lock()

    def run(self, source: np.ndarray, result: np.ndarray, threads: int) -> None:
        """Write the layer's output for `source`, float32 (H, W, C), into `result`, float32 (H, W, O).

        It is fastest if both are contiguous and C and O are multiples of 16, because then it copies nothing. Raises
        EngineError for arrays that do not fit this layer. The kernels would read or write beyond their ends.
        """
        check_image(source, self.model.num_in_ch)
        height, width, _ = source.shape
        shape = (height, width, self.model.num_out_ch)
        if result.dtype != np.float32 or result.shape != shape:
            raise EngineError(f"a float32 result of shape {shape} is needed, found {result.dtype} of {result.shape}")
        with self._lock:
            if self._engine is not None:
                result[:] = self._engine.run(np.ascontiguousarray(source))
                return
            assert self._weights is not None
            program = self._program
            if program is None or (program.height, program.width) != (height, width):
                program = _LayerProgram(model=self.model, weights=self._weights, height=height, width=width)
                self._program = program
            padded = source
            if not _is_direct(source):
                padded = _memory(height, width, self.model.num_in_ch)
                padded[:, :, : source.shape[2]] = source
            target = result if _is_direct(result) else _memory(height, width, self.model.num_out_ch)
            program.run_between(padded, target, threads)
            if target is not result:
                result[:] = target[:, :, : result.shape[2]]


def _is_direct(array: np.ndarray) -> bool:
    """Whether the kernels can work on this memory as it is."""
    return array.flags.c_contiguous and array.shape[2] % kernels.layout().group == 0


def _memory(height: int, width: int, channels: int) -> np.ndarray:
    """Zeros (height, width, stride of the channels) and some behind them, which kernels of narrow maps may read."""
    stride = kernels.stride_of(channels)
    size = height * width * stride
    return np.zeros(size + kernels.layout().float_slack, np.float32)[:size].reshape(height, width, stride)
