"""The NEON kernels, cross-compiled and run by an emulator, against the reference: equal in every bit."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.packed_models import binary_layer, float_layer, small_model
from helpers.places import PACKAGE

from bam_plugin.engine import Engine
from bam_plugin.engine.kernels import Isa, Map, Stage
from bam_plugin.engine.parameters import Weights
from bam_plugin.engine.program import Program
from bam_plugin.packed import PackedModel
from bam_plugin.packed.graph import INPUT
from bam_plugin.packed.graph_builder import GraphBuilder
from bam_plugin.packed.integers import with_integers
from bam_plugin.packed.precision import INTEGERS, Offer, reducible_convs

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
SOURCES = PACKAGE / "engine/csrc"
NEON, PORTABLE = Isa("neon", 0, 4, 4), Isa("portable", 1, 4, 2)
pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None or EMULATOR is None,
    reason="needs a cross compiler and an emulator (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """The kernels for 64-bit ARM with tests/kernel_driver.c as their main program."""
    program = tmp_path_factory.mktemp("neon") / "driver"
    files = [SOURCES / name for name in ("engine.c", "isa_neon.c", "isa_portable.c")]
    files.append(Path(__file__).parent / "kernel_driver.c")
    flags = ["-O2", "-std=c11", "-static", "-ffp-contract=off", "-fno-math-errno", "-DBAM_BUILD_NEON=1", f"-I{SOURCES}"]
    subprocess.run([COMPILER, *flags, *map(str, files), "-lm", "-lpthread", "-o", str(program)], check=True)
    return program


def write_program(program: Program, image: np.ndarray, path: Path) -> None:
    """Everything a program points to, as kernel_driver.c reads it."""
    program._view(INPUT)[:, :, : image.shape[2]] = image
    (spans,) = program._strips
    stages = (Stage * len(program._stages))(*program._stages)
    for index, (begin, end) in enumerate(spans):
        stages[program.plan.tail + index].row_begin = begin
        stages[program.plan.tail + index].row_end = end
    arrays = [item for item in program._alive if isinstance(item, np.ndarray)]
    arrays += [program._zeros, *program._buffers.values()]
    blobs = {array.ctypes.data: array.tobytes() for array in arrays}
    structs = [stages, program._map_array, *(item for item in program._alive if not isinstance(item, np.ndarray))]
    blobs |= {ctypes.addressof(item): bytes(item) for item in structs}
    output = program._buffers[program.model.graph.output].ctypes.data
    scratch = -(-program._scratch_bytes // 64) * 64
    maps = ctypes.sizeof(program._map_array) // ctypes.sizeof(Map)
    addresses = (ctypes.addressof(stages), ctypes.addressof(program._map_array), output)
    with path.open("wb") as file:
        file.write(struct.pack("<7Q", len(blobs), len(stages), maps, scratch, *addresses))
        for address, content in blobs.items():
            file.write(struct.pack("<2Q", address, len(content)) + content)


@pytest.mark.parametrize("isa", [NEON, PORTABLE], ids=lambda isa: isa.name)
@pytest.mark.parametrize(("channels", "colours"), [(5, 3), (16, 1), (48, 1), (48, 3), (70, 3)])
def test_arm_equals_the_reference(driver, tmp_path, isa, channels, colours):
    compare(driver, tmp_path, isa, small_model(channels=channels, blocks=1, in_channels=colours))


@pytest.mark.parametrize("isa", [NEON, PORTABLE], ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("channels", "kernel", "alphabet"), [(512, 3, "-1,+1"), (33, 5, "0,1"), (130, 1, "0,1"), (1, 7, "-1,+1")]
)
def test_arm_counts_as_the_reference(driver, tmp_path, isa, channels, kernel, alphabet):
    """Patches, kernels too large for one, and running counts that must be emptied in between."""
    builder, generator = GraphBuilder(num_in_ch=3), np.random.default_rng(channels)
    value = float_layer(builder, generator, builder.input, "head", out=channels, kernel=1)
    value = binary_layer(builder, generator, value, "conv", out=20, kernel=kernel, alphabet=alphabet)
    graph = builder.finish(float_layer(builder, generator, value, "tail", out=3, kernel=1))
    compare(driver, tmp_path, isa, PackedModel(graph=graph, tensors=builder.tensors))


@pytest.mark.parametrize("isa", [NEON, PORTABLE], ids=lambda isa: isa.name)
@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize("channels", [12, 48])
def test_arm_equals_the_reference_on_integers(driver, tmp_path, isa, precision, channels):
    model = small_model(channels=channels, blocks=1)
    ranges = {name: (2.0,) * channels for name, channels in reducible_convs(model.graph).items()}
    compare(driver, tmp_path, isa, with_integers(model, Offer(INTEGERS[precision], ranges, {}, {})))


def compare(driver: Path, tmp_path: Path, isa: Isa, model: PackedModel) -> None:
    colours = model.num_in_ch
    image = np.random.default_rng(0).random((7, 51, colours)).astype(np.float32)
    program = Program(model=model, weights=Weights(isa=isa), height=7, width=51)
    write_program(program, image, tmp_path / "program")
    expected = Engine(model, isa="reference").run(image)
    for threads in ("1", "3"):
        command = [EMULATOR, str(driver), isa.name, threads, str(tmp_path / "program"), str(tmp_path / "output")]
        subprocess.run(command, check=True, timeout=100)
        found = np.fromfile(tmp_path / "output", dtype=np.float32)[: expected.size].reshape(expected.shape)
        assert found.tobytes() == expected.tobytes()
