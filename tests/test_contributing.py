"""The recipes of CONTRIBUTING.md: followed to the letter in a copy of the package, they give what they promise.

Each recipe is a list of edits: `New file FILE:` or `In FILE, before|after LINE:`, and a code block.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.kernels import ISAS
from helpers.places import ROOT, TESTS

EDIT = re.compile(
    r"(?:New file|In)\s`(?P<file>[^`\n]+)`(?:,\s(?P<side>before|after)\s`(?P<line>[^`\n]+)`)?:\n\n"
    r"```\w+\n(?P<code>.*?)```\n",
    re.DOTALL,
)
# A new operation touches the record, the kernel, the lowering and the twins; a network and a binarizer are one file.
MOST_FILES = {"binarizer": 1, "packed operation": 6, "architecture": 1, "picture format": 1}


@dataclass(frozen=True)
class Edit:
    """One step of a recipe: a new file (line None), or code beside the only line that is `line`."""

    file: str
    side: str | None
    line: str | None
    code: str

    def apply(self, root: Path) -> None:
        path = root / self.file
        if self.line is None:
            assert not path.exists(), f"{self.file} exists already"
            path.write_text(self.code)
            return
        lines = path.read_text().splitlines(keepends=True)
        places = [number for number, text in enumerate(lines) if text.rstrip("\n") == self.line]
        assert len(places) == 1, f"{self.file} has {len(places)} lines {self.line!r}"
        lines.insert(places[0] + (self.side == "after"), self.code)
        path.write_text("".join(lines))


def recipe(name: str) -> list[Edit]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(rf"^## Recipe: add an? {name}\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    edits = [Edit(**match.groupdict()) for match in EDIT.finditer(found[1])]
    assert len(edits) == found[1].count("```") // 2, "a code block of the recipe is no edit"
    return edits


def follow(name: str, root: Path, *, libraries: bool = True) -> list[Edit]:
    """Copy the package and the tests, and make the edits; without the built libraries for a recipe that builds them."""
    built = [] if libraries else ["_kernels*"]
    shutil.copytree(ROOT / "bam_plugin", root / "bam_plugin", ignore=shutil.ignore_patterns("__pycache__", *built))
    shutil.copytree(TESTS, root / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    edits = recipe(name)
    for edit in edits:
        edit.apply(root)
    return edits


def run(root: Path, *arguments: str) -> str:
    """Python in the copy, which finds the copy's package; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files_of_the_package(edits: list[Edit]) -> set[str]:
    return {edit.file for edit in edits if edit.file.startswith("bam_plugin/")}


def run_tests(root: Path, *arguments: str) -> None:
    """Some tests of the copy; at least one of them has to pass, and none may be skipped."""
    last = run(root, "-m", "pytest", "-p", "no:cacheprovider", *arguments).splitlines()[-1]
    assert re.search(r"\b\d+ passed", last) and "skipped" not in last, last


@pytest.mark.parametrize("name", MOST_FILES)
def test_a_recipe_stays_small(name: str) -> None:
    assert 1 <= len(files_of_the_package(recipe(name))) <= MOST_FILES[name]


def test_a_binarizer(tmp_path: Path) -> None:
    follow("binarizer", tmp_path)
    run(tmp_path, "-c", BINARIZER)


BINARIZER = """
import torch
from bam_plugin.archs.srresnet_arch import SRResNet
from bam_plugin.config.check import check_network
from bam_plugin.conversion.converter import convert_network
from bam_plugin.nn import ACTIVATION_BINARIZERS, BinaryConv2d

# The published gradient: b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)).
x = torch.linspace(-2, 2, 81, dtype=torch.float64).view(1, 1, 9, 9).requires_grad_()
binarizer = ACTIVATION_BINARIZERS["signswish"](num_feat=1, slope=3.0)
(signs, factor), = binarizer.maps(x)
signs.sum().backward()
y = 3 * x.detach()
torch.testing.assert_close(x.grad, 3 * (2 - y * (y / 2).tanh()) / (1 + y.cosh()))
assert factor is None and torch.equal(signs.detach(), torch.where(x >= 0, 1.0, -1.0).double())

options = {"num_feat": 8, "num_block": 2, "upscale": 2, "binarizer": "bnn", "activation_binarizer": "signswish"}
wrong = {"type": "SRResNet", **options, "activation_options": {"slop": 3.0}}
assert not list(check_network({**wrong, "activation_options": {"slope": 3.0}}, ("network_g",)))
assert "slope" in str(list(check_network(wrong, ("network_g",))))

torch.manual_seed(0)
network = SRResNet(**options, activation_options={"slope": 3.0})
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
for _ in range(3):
    optimizer.zero_grad()
    network(torch.rand(2, 3, 8, 8)).sub(0.5).abs().mean().backward()
    optimizer.step()
convs = [module for module in network.modules() if isinstance(module, BinaryConv2d)]
assert len(convs) == 4 and all(conv.weight.grad.abs().sum() > 0 for conv in convs)
conversion = convert_network(network)
assert sum(row.note == "packed" for row in conversion.rows) == 4
assert conversion.comparison.flipped == 0 and conversion.comparison.signs > 0
"""


@pytest.mark.skipif(not ISAS, reason="the C kernels were not built (no C compiler at installation)")
def test_a_packed_operation(tmp_path: Path) -> None:
    follow("packed operation", tmp_path, libraries=False)
    run(tmp_path, "bam_plugin/engine/csrc/build.py")
    assert list((tmp_path / "bam_plugin/engine").glob("_kernels*"))
    files = ["engine/test_kernels.py", "conversion/test_onnx_export.py", "bench/test_rivals.py"]
    chosen = "test_operations and square or test_every_operation_at_odd_sizes or test_every_operation and torch"
    run_tests(tmp_path, *[f"tests/{file}" for file in files], "-k", chosen)
    run(tmp_path, "-c", OPERATION)


OPERATION = """
import torch
from torch import nn
from bam_plugin.conversion.converter import convert_network

class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return torch.square(self.conv(x))

torch.manual_seed(0)
conversion = convert_network(Squared())
assert [node.op for node in conversion.model.graph.nodes] == ["conv2d", "square"]
assert conversion.comparison.same_signs.max_difference <= 1
"""


def test_an_architecture(tmp_path: Path) -> None:
    follow("architecture", tmp_path)
    run_tests(tmp_path, "tests/archs/test_registry.py", "-k", "test_every_network_is_walked or ExampleSR and bam")
    printed = run(tmp_path, "-m", "bam_plugin", "profile", "ExampleSR", "--set", "num_feat=16")
    assert "ExampleSR" in printed and "body.layers.3.conv" in printed
    run(tmp_path, "-c", ARCHITECTURE)


ARCHITECTURE = """
from bam_plugin.config.check import check_network
from bam_plugin.conversion.converter import build_network, convert_network

section = {"type": "ExampleSR", "num_feat": 8, "upscale": 2, "binarizer": "react"}
assert not list(check_network(section, ("network_g",)))
assert "num_layers" in str(list(check_network({**section, "num_layer": 3}, ("network_g",))))
conversion = convert_network(build_network(section))
assert sum(row.note == "packed" for row in conversion.rows) == 4 and conversion.comparison.flipped == 0
"""


def test_a_picture_format(tmp_path: Path) -> None:
    follow("picture format", tmp_path)
    run_tests(tmp_path, "tests/pictures/test_reading.py", "tests/pictures/test_writing.py", "-k", "qoi or automatic")
    assert "qoi" in run(tmp_path, "-m", "bam_plugin", "upscale", "--help")
    run(tmp_path, "-c", PICTURE_FORMAT)


PICTURE_FORMAT = """
import numpy as np
from PIL import Image
from bam_plugin.data.images import list_images, read_image
from bam_plugin.upscale import upscale_files

pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
Image.fromarray(pixels).save("small.qoi")
(result,) = upscale_files("small.qoi", "large")
assert result.error is None and result.destination.name == "small.qoi" and result.size == (48, 36)
assert [path.name for path in list_images("large")] == ["small.qoi"]
assert (read_image("small.qoi") == pixels[:, :, ::-1]).all()
"""
