"""ONNX Runtime as a rival.

It runs the ONNX model that `bam convert --onnx` writes, or a part of it, on the CPU in fp32.
"""

from __future__ import annotations

import numpy as np

from bam_plugin.bench.rivals import Call
from bam_plugin.bench.segments import Workload
from bam_plugin.conversion.onnx_export import export_segment, make_session


def build(workload: Workload, part: str) -> Call:
    """A call that computes one part."""
    segment = workload.segments[part]
    data = export_segment(workload.model, segment.nodes, inputs=segment.inputs, outputs=segment.outputs)
    session = make_session(data, threads=workload.threads)
    feeds = {name: np.ascontiguousarray(workload.values[name].transpose(2, 0, 1)[None]) for name in segment.inputs}

    def call() -> list[np.ndarray]:
        return [output[0].transpose(1, 2, 0) for output in session.run(list(segment.outputs), feeds)]

    return call
