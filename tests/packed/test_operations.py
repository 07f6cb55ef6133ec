"""The records of the operations: every part of an operation is there, and every other place knows the same ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.packed_models import every_operation

from bam_plugin.conversion.twins import TWINS
from bam_plugin.engine.kernels import Map, Ref, compiled_isas, layout, operation_codes
from bam_plugin.packed import EngineError
from bam_plugin.packed.ops import MAX_KERNEL, OPERATIONS

STORED = [name for name, record in OPERATIONS.items() if record.stored]
OTHERS = {"weigh", "grouped_conv2d", "depthwise_conv2d"}  # kernels of several nodes, or of a kind of node
needs_kernels = pytest.mark.skipif(not compiled_isas(), reason="the C kernels were not built")


def test_the_document_lists_every_stored_operation():
    text = (Path(__file__).parents[2] / "docs/packed_format.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall("`(.+?)`", row.split("|")[1])}
    assert set(STORED) <= listed


def test_every_stored_operation_has_twins():
    assert set(TWINS) | {"threshold"} == set(STORED)


def test_the_model_of_all_operations_has_them_all():
    assert {node.op for node in every_operation().graph.nodes} == set(STORED)


@needs_kernels
def test_the_library_has_a_kernel_for_every_operation():
    assert set(operation_codes()) == set(OPERATIONS) | OTHERS
    assert layout().max_kernel >= MAX_KERNEL


@needs_kernels
def test_numbers_that_do_not_fit_are_refused():
    """ctypes alone would cut them."""
    assert Ref(1 << 40, 3).offset == 1 << 40
    for value in (1 << 31, -(1 << 31) - 1):
        with pytest.raises(EngineError, match="does not fit"):
            Ref(0, value)
        with pytest.raises(EngineError, match="does not fit"):
            Map().height = value
    assert np.iinfo(np.int64).max == Ref(np.iinfo(np.int64).max, 0).offset
