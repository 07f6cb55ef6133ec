"""Resuming: the newest whole state is taken with its networks, and damage is noticed and named."""

from __future__ import annotations

import logging
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.training_runs import damage

from bam_plugin.toolbox import compat, resuming

compat.apply()


def resume_options(folder: Path, **changes) -> dict:
    paths = {"training_states": str(folder), "models": str(folder), "resume_state": None, "pretrain_network_g": None}
    return {"auto_resume": True, "network_g": {}, "path": {**paths, **changes.pop("path", {})}, **changes}


def write_state(path: Path, iteration: int) -> None:
    torch.save({"params": {"weight": torch.full((50,), float(iteration))}}, path.with_name(f"net_g_{iteration}.pth"))
    # BasicSR's MultiStepRestartLR keeps a Counter: it must pass weights_only.
    torch.save({"iter": iteration, "epoch": 1, "schedulers": [{"milestones": Counter([5])}]}, path)


def test_auto_resume_takes_the_greatest_iteration_and_its_network(tmp_path):
    for iteration in (5, 10, 9):
        write_state(tmp_path / f"{iteration}.state", iteration)
    (tmp_path / "latest.state").write_bytes(b"not a number")
    opt = resume_options(tmp_path)
    state = resuming.load_resume_state(opt)
    assert state["iter"] == 10 and state["schedulers"][0]["milestones"] == Counter([5])
    assert opt["path"]["pretrain_network_g"] == str(tmp_path / "net_g_10.pth")


def test_nothing_to_resume_starts_afresh(tmp_path):
    assert resuming.load_resume_state(resume_options(tmp_path)) is None
    assert resuming.load_resume_state(resume_options(tmp_path / "missing")) is None
    assert resuming.load_resume_state(resume_options(tmp_path, auto_resume=False)) is None


def test_resume_state_by_name(tmp_path):
    write_state(tmp_path / "7.state", 7)
    opt = resume_options(tmp_path, auto_resume=False, path={"resume_state": str(tmp_path / "7.state")})
    assert resuming.load_resume_state(opt)["iter"] == 7


def harmful_state(path: Path) -> None:
    torch.save({"iter": 3, "call": Path}, path)


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"PK\x03\x04 cut"), harmful_state])
def test_unreadable_and_unsafe_states_are_named(tmp_path, spoil):
    path = tmp_path / "3.state"
    spoil(path)
    with pytest.raises(resuming.ResumeError, match=r"3\.state"):
        resuming.load_resume_state(resume_options(tmp_path))


def test_missing_resume_state_is_named(tmp_path):
    opt = resume_options(tmp_path, auto_resume=False, path={"resume_state": str(tmp_path / "none.state")})
    with pytest.raises(resuming.ResumeError, match="does not exist"):
        resuming.load_resume_state(opt)


def flip(path: Path, position: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damaged", ["9.state", "net_g_9.pth"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_state_falls_back_to_the_one_before_with_a_warning(tmp_path, caplog, damaged, how):
    for iteration in (5, 9):
        write_state(tmp_path / f"{iteration}.state", iteration)
    path = tmp_path / damaged
    if how == "flipped":
        damage(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damaged.endswith("pth"):
        path.unlink()
    else:
        path.write_bytes(b"")
    opt = resume_options(tmp_path)
    with caplog.at_level(logging.WARNING, "basicsr"):
        assert resuming.load_resume_state(opt)["iter"] == 5
    assert opt["path"]["resume_state"].endswith("5.state") and opt["path"]["pretrain_network_g"].endswith("net_g_5.pth")
    assert damaged in caplog.text and "goes on from 5.state" in caplog.text


def test_a_damaged_state_that_was_named_is_refused(tmp_path):
    for iteration in (5, 9):
        write_state(tmp_path / f"{iteration}.state", iteration)
    damage(tmp_path / "9.state")
    opt = resume_options(tmp_path, auto_resume=False, path={"resume_state": str(tmp_path / "9.state")})
    with pytest.raises(resuming.ResumeError, match=r"9\.state is damaged.*set path\.resume_state"):
        resuming.load_resume_state(opt)


def test_networks_that_are_not_resumed_need_not_be_there(tmp_path):
    write_state(tmp_path / "7.state", 7)
    opt = resume_options(tmp_path, network_d={}, path={"ignore_resume_networks": ["network_d"]})
    assert resuming.load_resume_state(opt)["iter"] == 7
    with pytest.raises(resuming.ResumeError, match=r"net_d_7\.pth"):
        resuming.load_resume_state(resume_options(tmp_path, network_d={}))


def test_no_flipped_bit_loads_silently(tmp_path):
    """torch loads most of them: each is refused, or changes nothing that is read."""
    path = tmp_path / "3.state"
    values = {"exp_avg": torch.rand(100), "step": torch.tensor(3.0)}
    content = {"iter": 3, "optimizers": [{"state": {0: values}}], "rates": [0.1, 0.2]}
    torch.save(content, path)
    torch.save({"params": {}}, tmp_path / "net_g_3.pth")
    whole = path.read_bytes()
    generator = random.Random(4)
    refused = 0
    for _ in range(200):
        path.write_bytes(whole)
        flip(path, generator.randrange(len(whole)), generator.randrange(8))
        try:
            state = resuming.load_resume_state(resume_options(tmp_path))
        except resuming.ResumeError:
            refused += 1
            continue
        assert {key: state[key] for key in ("iter", "rates")} == {"iter": 3, "rates": [0.1, 0.2]}
        assert all(torch.equal(state["optimizers"][0]["state"][0][key], value) for key, value in values.items())
    assert refused > 100
