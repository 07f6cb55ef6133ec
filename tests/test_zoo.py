"""The networks that come with the package: whole, described, and as good as their files say."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers.places import ROOT

from bam_plugin import cli
from bam_plugin.data.evaluation import evaluate
from bam_plugin.data.images import read_image
from bam_plugin.data.pairs import downscale
from bam_plugin.packed.format import read_packed
from bam_plugin.packed.precision import read_offers
from bam_plugin.packed.zoo import DEFAULT_NETWORK, ZOO, find_model, list_models
from bam_plugin.pictures.imresize import mod_crop
from bam_plugin.upscale import Upscaler

MODELS = list_models()
IDS = [f"{model.network}_x{model.scale}" for model in MODELS]


def test_the_default_is_there():
    assert find_model().name == f"{DEFAULT_NETWORK}_x4.bam.safetensors"


@pytest.mark.parametrize("file", MODELS, ids=IDS)
def test_each_network_says_what_it_is(file, capsys):
    model = read_packed(file.path)
    assert model.scale == file.scale and model.receptive_radius
    facts = model.metadata
    assert {"data", "terms", "iterations", "recipe"} <= set(facts["training"])
    assert {"Set5", "Set14", "B100"} <= set(facts["metrics"])
    assert read_offers(model.graph, facts)
    card = (ZOO / "MODEL_CARD.md").read_text(encoding="utf-8")
    section = card.split(f"## {file.network}_x{file.scale}\n")[1].split("\n## ")[0]
    for metrics in facts["metrics"].values():
        assert f"{metrics['psnr']:.2f} / {metrics['ssim']:.4f}" in section
    assert cli.main(["inspect", f"{file.network}_x{file.scale}"]) == 0
    assert "(verified)" in capsys.readouterr().out
    assert file.path.stat().st_size < 4e6


@pytest.mark.parametrize("file", MODELS, ids=IDS)
def test_the_guide_states_what_each_network_gives_at_other_scales(file, data_root):
    guide = (ROOT / "docs/upscale.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"\| `{file.network}_x{file.scale}` \| Set5 \| (\S+) \| (\S+) \|", guide)
    for scale, stated in zip((2, 3), row, strict=True):
        result = evaluate(read_packed(file.path), data_root / "Set5", scale=scale, threads=1)
        assert result.psnr == pytest.approx(float(stated), abs=0.0051)


@pytest.mark.parametrize("file", MODELS, ids=IDS)
def test_each_network_reaches_its_stated_value(file, data_root):
    from bam_plugin.data.metrics import calculate_psnr_y

    upscaler = Upscaler(file.path, threads=1)
    values = []
    for path in sorted((data_root / "Set5").glob("*.png")):
        original = mod_crop(read_image(path), file.scale)
        large = upscaler.upscale(np.ascontiguousarray(downscale(original, file.scale)[:, :, ::-1]))
        values.append(calculate_psnr_y(large[:, :, ::-1], original, crop_border=file.scale))
    assert len(values) == 5
    assert np.mean(values) == pytest.approx(upscaler.model.metadata["metrics"]["Set5"]["psnr"], abs=0.005)


def test_the_example_of_upscaler_names_a_network_that_is_there() -> None:
    from bam_plugin.upscale import upscaler

    (name,) = re.findall(r'Upscaler\("(\w+)"\)', upscaler.__doc__ or "")
    assert find_model(name).is_file()
