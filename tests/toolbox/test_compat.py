from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.places import ROOT

from bam_plugin.errors import BamError, MissingDependencyError
from bam_plugin.toolbox import compat

IMPORT_BASICSR = """
import sys
from bam_plugin.toolbox import compat
compat.apply()
compat.apply()
assert "torch" not in sys.modules and "basicsr" not in sys.modules, "apply() must stay cheap"
from basicsr.data.degradations import rgb_to_grayscale
import torch, torchvision.transforms.functional as functional
image = torch.rand(3, 4, 5)
assert torch.equal(rgb_to_grayscale(image), functional.rgb_to_grayscale(image))
assert sum(type(finder).__name__ == "_RemovedModuleFinder" for finder in sys.meta_path) == 1
"""


def test_basicsr_imports_beside_a_current_torchvision():
    subprocess.run([sys.executable, "-c", IMPORT_BASICSR], check=True, cwd=ROOT)


def test_finder_knows_only_the_removed_module():
    compat.apply()
    with pytest.raises(ModuleNotFoundError):
        __import__("torchvision.transforms.functional_nonsense")


def test_launcher_without_its_environment_says_what_to_type(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BamError, match="torchrun"):
        compat.init_dist("pytorch")
    with pytest.raises(BamError, match="SLURM_PROCID"):
        compat.init_dist("slurm")


def test_slurm_job_is_described_to_torch(monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n[ \"$1 $2 $3\" = 'show hostnames node[3-4]' ] && printf 'node3\\nnode4\\n'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    values = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODELIST": "node[3-4]"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "old")
    compat._describe_slurm_job(29501)
    import os

    found = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    assert found == {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node3", "MASTER_PORT": "29501",
    }  # fmt: skip


def test_replaced_restores_after_an_error():
    with pytest.raises(RuntimeError), compat.replaced(compat, init_dist=len):
        assert compat.init_dist is len
        raise RuntimeError
    assert compat.init_dist is not len


def test_a_torch_that_runs_code_from_checkpoints_is_refused(monkeypatch):
    compat.require_basicsr()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.5.1+cpu")
    with pytest.raises(MissingDependencyError, match=r"torch 2\.5\.1\+cpu is installed, 2\.6 or later"):
        compat.require_basicsr()
