"""A mixed file chooses a network and its options: none of them may open a file, connect, or start a process."""

from __future__ import annotations

import dataclasses
import importlib
import os
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest
import torch
from helpers.mixed_hosts import mixed_model, section
from torch import nn

from bam_plugin.archs.bsrn_arch import ARCH_REGISTRY
from bam_plugin.mixed.mixed_network import load_network
from bam_plugin.mixed.sealed import SealedError, refuse_files, sealed
from bam_plugin.packed.errors import UnbuildableNetworkError
from bam_plugin.packed.mixed_format import MixedModel


class SideEffect:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    torch.save({"params": SideEffect()}, tmp_path / "evil.pth")
    return tmp_path / "evil.pth"


def forged(**network_g: object) -> MixedModel:
    """A mixed file that asks for another network."""
    model = mixed_model("RCAN")
    return dataclasses.replace(model, metadata={**model.metadata, "network_g": network_g})


@pytest.mark.parametrize(
    "section",
    [
        {"type": "SpyNet", "load_path": "{evil}"},
        {"type": "BasicVSR", "spynet_path": "{evil}"},
        {"type": "Binarized", "host": {"type": "SpyNet", "load_path": "{evil}"}},
        {"type": "Binarized", "host": {"type": "PackedNetwork", "file": "{evil}"}},
        {"type": "DFDNet", "num_feat": 8, "dict_path": "{evil}"},
    ],
)
def test_options_that_name_files_are_refused(evil: Path, section: dict) -> None:
    def filled(value):
        if isinstance(value, dict):
            return {key: filled(each) for key, each in value.items()}
        return value.format(evil=evil) if isinstance(value, str) else value

    with pytest.raises(UnbuildableNetworkError, match=r"lets its network open a file: network_g\..*evil\.pth"):
        load_network(forged(**filled(section)))


def test_options_of_honest_networks_pass() -> None:
    refuse_files({"type": "SwinIR", "drop_path_rate": 0.1, "use_checkpoint": False, "upsampler": "pixelshuffle"})


OWN_ATTEMPTS = {
    "OpensForSealedTest": lambda: torch.load("/etc/hostname"),
    "WritesForSealedTest": lambda: Path("stolen.txt").write_text("x"),
    "ConnectsForSealedTest": lambda: socket.create_connection(("127.0.0.1", 9)),
    "DownloadsForSealedTest": lambda: urllib.request.urlopen("http://127.0.0.1:9/"),
    "StartsForSealedTest": lambda: subprocess.run(["true"], check=True),
    "ShellsForSealedTest": lambda: os.system("true"),
    "RemovesForSealedTest": lambda: Path("kept.txt").unlink(),
}


@pytest.mark.parametrize("name", OWN_ATTEMPTS)
def test_constructors_that_try_it_are_stopped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kept.txt").write_text("x")

    def construct(self: nn.Module) -> None:
        nn.Module.__init__(self)
        OWN_ATTEMPTS[name]()

    if name not in ARCH_REGISTRY:
        ARCH_REGISTRY.register(type(name, (nn.Module,), {"__init__": construct}))
    with pytest.raises(UnbuildableNetworkError, match="what a packed file may not ask for"):
        load_network(forged(type=name))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_network_that_downloads_weights_is_stopped(monkeypatch) -> None:
    monkeypatch.setattr("bam_plugin.mixed.bounded.MOST_NUMBERS", (0, 1 << 40))  # else its size stops it first
    with pytest.raises(UnbuildableNetworkError, match="may not ask for"):
        load_network(forged(type="VGGFeatureExtractor", layer_name_list=["conv1_1"]))


def test_the_seal_ends_with_its_block_and_lets_modules_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "imported_under_seal.py").write_text("NAME = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with sealed():
        assert importlib.import_module("imported_under_seal").NAME == 1
        with pytest.raises(SealedError), sealed():
            (tmp_path / "a.txt").read_text()
        with pytest.raises(PermissionError):
            (tmp_path / "a.txt").read_text()
    assert (tmp_path / "a.txt").read_text() == "x"


def test_single_tensors_are_stopped_before_they_take_memory() -> None:
    rcan = section("RCAN")
    for options in ({**rcan, "probe_size": 10**5}, {**rcan, "host": {**rcan["host"], "num_feat": 1 << 14}}):
        with pytest.raises(UnbuildableNetworkError, match="BoundError: it makes a tensor of"):
            load_network(forged(**options))
