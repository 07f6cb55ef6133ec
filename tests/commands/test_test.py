"""`bam test FILE SET...`: a packed file is measured without an option file, as the test pipeline measures it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.data_images import textured_picture
from helpers.upscale_models import tiny_model

from bam_plugin import Upscaler, evaluate
from bam_plugin.cli import main
from bam_plugin.data.image_sets import find_set
from bam_plugin.packed import write_packed
from bam_plugin.pictures.bgr import encode_png
from bam_plugin.pictures.imresize import imresize, mod_crop
from bam_plugin.pictures.measures import psnr_y, ssim_y


def original(seed: int) -> np.ndarray:
    return textured_picture(np.random.default_rng(seed), 61)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed file and a set of two pictures below `datasets`, in the current directory."""
    monkeypatch.delenv("BAM_DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    write_packed(tiny_model(scale=2), tmp_path / "tiny_x2.bam.safetensors")
    (tmp_path / "datasets/Two").mkdir(parents=True)
    for seed in (1, 2):
        (tmp_path / f"datasets/Two/{seed}.png").write_bytes(
            encode_png(textured_picture(np.random.default_rng(seed), 61))
        )
    return tmp_path


def test_a_packed_file_on_a_set(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["test", "tiny_x2.bam.safetensors", "Two"]
    assert main([*words, "-o", "out"]) == 0
    out = capsys.readouterr().out
    assert "## tiny_x2, x2" in out and "| Two" in out
    assert (place / "out/results.md").read_text() == out
    assert main([*words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)

    upscaler = Upscaler(place / "tiny_x2.bam.safetensors")
    psnr, ssim = [], []
    for seed in (1, 2):
        target = mod_crop(original(seed), 2)
        large = upscaler.upscale(np.ascontiguousarray(imresize(target, scale=0.5)[..., ::-1]))[..., ::-1]
        psnr.append(psnr_y(large, target, 2))
        ssim.append(ssim_y(large, target, 2))
    assert found == {"dataset": "Two", "psnr": np.mean(psnr), "ssim": np.mean(ssim), "images": 2}
    assert evaluate(tiny_model(scale=2), "datasets/Two").psnr == found["psnr"]


def test_what_is_missing_is_named(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    for words, message in (
        ([], "bam test FILE Set5"),
        (["tiny_x2.bam.safetensors"], "name the sets"),
        (["tiny_x2.bam.safetensors", "Three"], "there is no set Three"),
        (["tiny_x2.bam.safetensors", "Two", "-opt", "a.yml"], "either a packed file"),
        (["none.bam.safetensors", "Two"], "none.bam.safetensors"),
    ):
        assert main(["test", *words]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("BAM_DATA_ROOT", str(place / "datasets"))
    monkeypatch.chdir(place / "datasets/Two")
    assert find_set("Two") == place / "datasets/Two"
