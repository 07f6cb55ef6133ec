"""ONNX Runtime as a rival.

It runs the ONNX model that `bam convert --onnx` writes, or a part of it, on the CPU in fp32.
"""

from __future__ import annotations

import numpy as np

from bam_plugin.bench.rivals import Call
from bam_plugin.bench.segments import Job
from bam_plugin.conversion.onnx_export import export_segment, make_session


def build(job: Job, part: str) -> Call:
    """A call that computes one part."""
    segment = job.segments[part]
    data = export_segment(job.model, segment.nodes, inputs=segment.inputs, outputs=segment.outputs)
    session = make_session(data, threads=job.threads)
    feeds = {name: np.ascontiguousarray(job.values[name].transpose(2, 0, 1)[None]) for name in segment.inputs}

    def call() -> list[np.ndarray]:
        return [output[0].transpose(1, 2, 0) for output in session.run(list(segment.outputs), feeds)]

    return call
