from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.places import ROOT

from bam_plugin.errors import BamError
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


def resume_options(folder: Path, **changes) -> dict:
    paths = {"training_states": str(folder), "models": str(folder), "resume_state": None, "pretrain_network_g": None}
    return {"auto_resume": True, "network_g": {}, "path": {**paths, **changes.pop("path", {})}, **changes}


def write_state(path: Path, iteration: int) -> None:
    # BasicSR's MultiStepRestartLR keeps a Counter: it must pass weights_only.
    torch.save({"iter": iteration, "epoch": 1, "schedulers": [{"milestones": Counter([5])}]}, path)


def test_auto_resume_takes_the_greatest_iteration_and_its_network(tmp_path):
    for iteration in (5, 10, 9):
        write_state(tmp_path / f"{iteration}.state", iteration)
    (tmp_path / "latest.state").write_bytes(b"not a number")
    opt = resume_options(tmp_path)
    state = compat.load_resume_state(opt)
    assert state["iter"] == 10 and state["schedulers"][0]["milestones"] == Counter([5])
    assert opt["path"]["pretrain_network_g"] == str(tmp_path / "net_g_10.pth")


def test_nothing_to_resume_starts_afresh(tmp_path):
    assert compat.load_resume_state(resume_options(tmp_path)) is None
    assert compat.load_resume_state(resume_options(tmp_path / "missing")) is None
    assert compat.load_resume_state(resume_options(tmp_path, auto_resume=False)) is None


def test_resume_state_by_name(tmp_path):
    write_state(tmp_path / "7.state", 7)
    opt = resume_options(tmp_path, auto_resume=False, path={"resume_state": str(tmp_path / "7.state")})
    assert compat.load_resume_state(opt)["iter"] == 7


def harmful_state(path: Path) -> None:
    torch.save({"iter": 3, "call": Path}, path)


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"PK\x03\x04 cut"), harmful_state])
def test_unreadable_and_unsafe_states_are_named(tmp_path, spoil):
    path = tmp_path / "3.state"
    spoil(path)
    with pytest.raises(compat.ResumeError, match=r"3\.state"):
        compat.load_resume_state(resume_options(tmp_path))


def test_missing_resume_state_is_named(tmp_path):
    opt = resume_options(tmp_path, auto_resume=False, path={"resume_state": str(tmp_path / "none.state")})
    with pytest.raises(compat.ResumeError, match="does not exist"):
        compat.load_resume_state(opt)


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
    with pytest.raises(RuntimeError), compat.replaced(compat, newest_state=len):
        assert compat.newest_state is len
        raise RuntimeError
    assert compat.newest_state is not len
