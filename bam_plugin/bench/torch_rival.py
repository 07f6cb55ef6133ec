"""PyTorch as a rival: the packed graph as a torch.fx module in channels_last, eager or by torch.compile.

In bf16 the convolutions' operands are bf16 and everything between them is float32 (`conversion/torch_graph.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bam_plugin.bench.rivals import Call
from bam_plugin.bench.segments import Workload
from bam_plugin.conversion.torch_graph import Translation


def build(workload: Workload, part: str, *, bf16: bool = False, compiled: bool = False) -> Call:
    """A call that computes one part, compiled for the present number of threads if `compiled`."""
    segment = workload.segments[part]
    torch.set_num_threads(workload.threads)
    translation = Translation(
        model=workload.model,
        nodes=segment.nodes,
        inputs=segment.inputs,
        outputs=segment.outputs,
        dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    network: Any = translation.module()
    inputs = [
        torch.from_numpy(np.ascontiguousarray(workload.values[name])).permute(2, 0, 1)[None] for name in segment.inputs
    ]
    if compiled:
        torch._dynamo.reset()  # compiled code keeps the number of threads for which it was compiled
        network = torch.compile(network, dynamic=False, options={"freezing": True})

    def call() -> list[np.ndarray]:
        torch.set_num_threads(workload.threads)
        with torch.inference_mode():
            outputs = network(*inputs)
        return [output[0].permute(1, 2, 0).numpy() for output in outputs]

    return call
