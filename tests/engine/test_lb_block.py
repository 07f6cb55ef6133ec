"""examples/lb_block.c, the block to read before the engine, equals the engine in every bit."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import POINTER, c_float, c_int, c_uint64
from pathlib import Path

import numpy as np
import pytest
from helpers.packed_models import lb_block, random_floats
from helpers.places import ROOT

from bam_plugin.engine import Engine
from bam_plugin.packed import PackedModel
from bam_plugin.packed.bits import bits_to_words, unpack_filters
from bam_plugin.packed.graph_builder import GraphBuilder

CHANNELS = 64
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


class Layer(ctypes.Structure):
    """layer_t"""

    _fields_ = [
        ("threshold", POINTER(c_float)),
        ("flip", c_uint64),
        ("filters", POINTER(c_uint64)),
        ("scale", POINTER(c_float)),
        ("kernel", c_int),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("lb_block") / "lb_block.so"
    flags = ["-O2", "-std=c11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = [str(COMPILER), *flags, str(ROOT / "examples/lb_block.c"), "-lm", "-o", str(path)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(path))


def floats(array: np.ndarray):
    return array.ctypes.data_as(POINTER(c_float))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 50)])
def test_the_block_equals_the_engine(library, size):
    generator = np.random.default_rng(size[0])
    builder = GraphBuilder(num_in_ch=CHANNELS)
    output = lb_block(builder, generator, builder.input, "block")
    model = PackedModel(graph=builder.finish(output), tensors=builder.tensors)
    tensors, layers, alive = model.tensors, [], []
    for name, kernel in (("conv3", 3), ("conv1_a", 1), ("conv1_b", 1)):
        negative = unpack_filters(tensors[f"block.{name}.weight"], kernel, CHANNELS)
        flip = int(bits_to_words(tensors[f"block.{name}.sign.flip"].astype(bool)[None])[0, 0])
        filters = np.ascontiguousarray(bits_to_words(negative))
        alive.append(filters)
        layers.append(
            Layer(
                floats(tensors[f"block.{name}.sign.threshold"]),
                flip,
                filters.ctypes.data_as(POINTER(c_uint64)),
                floats(tensors[f"block.{name}.scale"]),
                kernel,
            )
        )
    factors = np.array([0.1, 0.5, -0.05, 1.0], dtype=np.float32)  # those of helpers.packed_models.lb_block
    image, found = random_floats(generator, *size, CHANNELS), np.empty((*size, CHANNELS), np.float32)
    assert library.lb_block(floats(image), *size, (Layer * 3)(*layers), floats(factors), floats(found)) == 0
    for isa in ("reference", None):
        assert found.tobytes() == Engine(model, isa=isa).run(image).tobytes()


def test_the_example_stays_short():
    assert len(Path(ROOT / "examples/lb_block.c").read_text(encoding="utf-8").splitlines()) <= 160
