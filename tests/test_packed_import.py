"""Deployment needs neither torch nor basicsr: shown in a process that cannot import them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from packed_models import small_model

from bam_plugin.packed import write_packed

PROGRAM = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "basicsr"):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Blocker())
import numpy as np
from bam_plugin.cli import main
from bam_plugin.packed import Engine, read_packed

model = read_packed(sys.argv[1])
result = Engine(model).run(np.full((5, 7, 3), 0.5, np.float32))
assert result.shape == (10, 14, 3) and result.dtype == np.float32
assert main(["inspect", sys.argv[1]]) == 0
"""


def test_packed_runs_without_torch(tmp_path):
    path = tmp_path / "small_x2.bam.safetensors"
    write_packed(small_model(), path)
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "verified" in result.stdout
