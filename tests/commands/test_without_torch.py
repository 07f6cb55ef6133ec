"""Deployment needs neither torch nor basicsr: shown in a process that finds nothing of the extra `train`."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from helpers.data_images import picture, write
from helpers.packed_models import small_model
from helpers.places import ROOT
from helpers.without_torch import COMMAND, blocked

from bam_plugin.cli import COMMANDS
from bam_plugin.errors import install_command
from bam_plugin.packed import write_packed

ENGINE = """
import numpy as np
from bam_plugin.engine import Engine
from bam_plugin.packed import read_packed

model = read_packed(sys.argv[1])
result = Engine(model).run(np.full((5, 7, 3), 0.5, np.float32))
assert result.shape == (10, 14, 3) and result.dtype == np.float32
"""
OPTIONS = "options/train/BSRN/train_BSRN_x4.yml"
WORKING = {
    "bench": "bench small_x2.bam.safetensors --size 8x6 --rounds 1 -j 1 --isa numpy",
    "test": "test small_x2.bam.safetensors Set5",
    "inspect": "inspect small_x2.bam.safetensors",
    "upscale": "upscale -i in -o out -m small_x2.bam.safetensors",
    "compare": "compare in/a.png -m small_x2.bam.safetensors -o sheet.png",
    "options": "options",
    "options --expand": f"options --expand {ROOT / OPTIONS}",
    "quantize": "quantize small_x2.bam.safetensors --calibrate in --benchmarks Set5 --dry-run",
    "serve": "serve --help",
    "completion": "completion bash",
    "prepare": "prepare folder --input in --name a --output made --store folder --crop-size 48 --step 24 --quiet",
}
MISSING = {
    "train": f"train -opt {ROOT / OPTIONS}",
    "test -opt": f"test -opt {ROOT / OPTIONS.replace('train', 'test')}",
    "options --check": f"options --check {ROOT / OPTIONS}",
    "profile": "profile BSRN",
    "run": f"run {ROOT / 'tools/convert_binary.py'}",
    "optimizers": "optimizers",
    "convert": f"convert -i net.pth -opt {ROOT / OPTIONS} -o out.bam.safetensors",
    "prepare as LMDB": "prepare folder --input in --name a --output made_lmdb --quiet",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed file, a folder of one picture, and a benchmark that has it too."""
    folder = tmp_path_factory.mktemp("runtime")
    write_packed(small_model(), folder / "small_x2.bam.safetensors")
    for name in ("in/a.png", "Set5/butterfly.png"):
        write(folder / name, picture(0, 150, 125))
    return folder


def test_packed_runs_without_torch(place):
    result = blocked(ENGINE, "small_x2.bam.safetensors", cwd=place)
    assert result.returncode == 0, result.stderr


def test_every_command_is_tried():
    assert {name.split()[0] for name in [*WORKING, *MISSING]} == set(COMMANDS)


@pytest.mark.parametrize("name", WORKING)
def test_commands_of_the_runtime_work_without_torch(place, name):
    result = blocked(COMMAND, *WORKING[name].split(), cwd=place)
    assert result.returncode == 0, result.stderr
    if name == "prepare":
        assert "Set5/butterfly" in result.stderr  # the search for overlaps was done
    if name == "inspect":
        assert "verified" in result.stdout
    if name == "upscale":
        result_pixels = cv2.imread(str(place / "out/a.png"))
        assert result_pixels is not None and result_pixels.shape == (300, 250, 3)


@pytest.mark.parametrize("name", MISSING)
def test_commands_of_training_say_how_to_install_it(place, name):
    result = blocked(COMMAND, *MISSING[name].split(), cwd=place)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("bam") and ": MissingDependencyError: " in result.stderr
    if name == "prepare as LMDB":  # told before the long search, with nothing left behind
        assert install_command("train") in result.stderr and "Set5/butterfly" not in result.stderr
        assert not (place / "made_lmdb").exists()
    else:
        assert install_command("train") in result.stderr
