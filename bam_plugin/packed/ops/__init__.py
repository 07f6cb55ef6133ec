"""The operations of packed graphs, one record each: the table `OPERATIONS`.

The reference functions beside the records are plain NumPy. They are the truth: tests compare every fast path with them,
bit for bit. Float maps are float32 (H, W, C). Each arithmetic step rounds once to float32. Nothing is reordered, and
nothing is fused except where a docstring says so. Sign maps are words as in `bits.py`.

To add an operation, touch these places:

1. a module of this folder: the reference function, the check of the node's fields, and an `Operation` in the module's
   tuple `OPERATIONS` (in `TABLES` below for a new module);
2. `engine/csrc/tile_ops.h` (or a header that it includes): the kernel, and its name in the table `operations` there;
3. `conversion/lowering_ops.py`: which torch modules, functions or methods become it;
4. `conversion/twins.py`: the same in float, for ONNX and for PyTorch;
5. a test in `tests/engine/test_kernels.py` (a line of `OPS`), which compares every instruction set with the
   reference, and `every_operation` in `tests/helpers/packed_models.py`, which compares the twins;
6. the table in `docs/packed_format.md`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bam_plugin.packed.errors import InvalidGraphError
from bam_plugin.packed.graph import Node, ValueType
from bam_plugin.packed.ops import convolution, pointwise, sizes
from bam_plugin.packed.ops.operation import MAX_CHANNELS, MAX_KERNEL, MAX_NUMBERS, MAX_UP, Call, Operation, Tile

__all__ = ["MAX_CHANNELS", "MAX_KERNEL", "MAX_UP", "OPERATIONS", "Operation", "Tile", "infer_type"]

TABLES = (convolution, pointwise, sizes)
OPERATIONS: Mapping[str, Operation] = {record.name: record for module in TABLES for record in module.OPERATIONS}


def infer_type(node: Node, types: Mapping[str, ValueType], tensors: Mapping[str, np.ndarray]) -> ValueType:
    """The type of the value of a node. Raises InvalidGraphError, MissingTensorError or TensorShapeError."""
    record = OPERATIONS.get(node.op)
    if record is None or not record.stored:
        known = sorted(name for name, record in OPERATIONS.items() if record.stored)
        raise InvalidGraphError(f"node {node.name!r} has the unknown op {node.op!r}; known: {known}")
    if node.name in types:
        raise InvalidGraphError(f"two nodes are called {node.name!r}, or one as the input")
    call = Call(node=node, types=types, tensors=tensors)
    result = record.check(call)
    call.finish()
    if result.channels * result.up**2 > MAX_NUMBERS:
        raise call.fault(f"makes {result.channels} channels at magnification {result.up}, too many numbers per pixel")
    return result
