"""`bam quantize` end to end on made pictures: calibrate, measure, write what is cheap, refuse what is not."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from helpers.data_images import textured_picture
from helpers.upscale_models import tiny_model

from bam_plugin.cli import main
from bam_plugin.packed import PackedModel, read_packed, write_packed
from bam_plugin.packed.graph_builder import GraphBuilder
from bam_plugin.packed.precision import FIELD, read_offers
from bam_plugin.upscale import Upscaler


@pytest.fixture
def places(tmp_path):
    """A packed file, pictures to calibrate on, and two benchmarks, one with a grey picture."""
    generator = np.random.default_rng(3)
    write_packed(tiny_model(features=16), tmp_path / "tiny_x4.bam.safetensors")
    for folder, count in (("photos", 3), ("SetA", 2), ("SetB", 1)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            cv2.imwrite(str(tmp_path / folder / f"{index}.png"), textured_picture(generator, 96))
    grey = cv2.imread(str(tmp_path / "SetA/0.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "SetA/0.png"), grey)
    return tmp_path


def quantize(places, *more: str, calibrate: str = "photos", file: str = "tiny_x4.bam.safetensors") -> int:
    sets = [str(places / name) for name in ("SetA", "SetB")]
    return main(
        [
            "quantize",
            str(places / file),
            "--calibrate",
            str(places / calibrate),
            "--benchmarks",
            *sets,
            "-j",
            "1",
            *more,
        ]
    )


def test_precisions_are_added_and_used(places, capsys):
    file = places / "tiny_x4.bam.safetensors"
    before = read_packed(file)
    assert quantize(places, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    after = read_packed(file)
    offers = read_offers(after.graph, after.metadata)
    assert list(offers) == ["int8", "int16"] and after.graph == before.graph
    assert all(np.array_equal(after.tensors[name], array) for name, array in before.tensors.items())
    for row in report["precisions"]:
        assert row["offered"] and offers[row["precision"]].cost == row["cost_db"]
        assert set(row["cost_db"]) == {"SetA", "SetB"} == set(report["fp32"])
        for name, cost in row["cost_db"].items():
            assert cost == pytest.approx(report["fp32"][name] - row["psnr"][name], abs=1e-4)
    assert offers["int8"].calibration == {"name": "photos", "images": 3}
    assert report["convolutions"] == ["tail"] == list(offers["int8"].ranges)

    image = cv2.imread(str(places / "photos/0.png"))
    results = {name: Upscaler(file, precision=name).upscale(image).astype(int) for name in ("fp32", "int8", "int16")}
    assert 0 < np.abs(results["fp32"] - results["int8"]).mean() < 0.5
    assert np.abs(results["fp32"] - results["int16"]).max() <= 1

    output = places / "large.png"
    arguments = ["upscale", "-i", str(places / "photos/0.png"), "-o", str(output), "-m", str(file), "--json"]
    assert main([*arguments, "--precision", "int8"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "int8"
    assert np.array_equal(
        cv2.imread(str(output)), Upscaler(file, precision="int8").upscale(image[:, :, ::-1])[:, :, ::-1]
    )

    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"int8 (costs SetA {offers['int8'].cost['SetA']:+.3f} dB, SetB" in shown


def test_one_precision_another_file_and_again(places, capsys):
    file, other = places / "tiny_x4.bam.safetensors", places / "other_x4.bam.safetensors"
    content = file.read_bytes()
    assert quantize(places, "--dry-run") == 0
    assert quantize(places, "--precision", "int16", "-o", str(other)) == 0
    assert file.read_bytes() == content
    assert list(read_packed(other).metadata[FIELD]) == ["int16"]
    assert quantize(places, "--precision", "int8", file=other.name) == 0  # is added to what is there
    assert set(read_packed(other).metadata[FIELD]) == {"int8", "int16"}
    first = other.read_bytes()
    assert quantize(places, file=other.name) == 0
    assert other.read_bytes() == first  # equal input, equal bytes
    third = places / "third_x4.bam.safetensors"
    assert quantize(places, "-o", str(third), file=other.name) == 0
    assert third.read_bytes() == first
    assert quantize(places, "-o", str(file)) == 2 and file.read_bytes() == content
    assert "exists" in capsys.readouterr().err
    assert quantize(places, "-o", str(file), "--force") == 0 and file.read_bytes() == first


def test_networks_of_the_package_stay_as_they_are(places, capsys):
    arguments = [
        "quantize",
        "bsrn_light_x4",
        "--calibrate",
        str(places / "photos"),
        "--benchmarks",
        str(places / "SetA"),
    ]
    assert main(arguments) == 2
    assert "comes with the package" in capsys.readouterr().err
    assert main([*arguments[:1], "nothing_x4", *arguments[2:]]) == 2
    assert "UnknownModelError" in capsys.readouterr().err


def test_pictures_too_small_are_named(places, capsys):
    cv2.imwrite(str(places / "SetB/tiny.png"), np.zeros((3, 3, 3), np.uint8))
    assert quantize(places) == 2
    assert "tiny.png is too small" in capsys.readouterr().err


def test_what_costs_too_much_is_refused_with_its_figures(places, capsys):
    """Calibrated on dark pictures the values of bright ones are cut."""
    file = places / "tiny_x4.bam.safetensors"
    shutil.copytree(places / "photos", places / "bright")
    for path in (places / "photos").iterdir():
        cv2.imwrite(str(path), (cv2.imread(str(path)) // 16 + 2).astype(np.uint8))
    builder = GraphBuilder(num_in_ch=3)  # each pixel becomes 4 x 4 equal ones
    copies = np.eye(3, dtype=np.float32)[np.arange(9) // 3][:, :, None, None]
    value = builder.add("conv2d", "head", builder.input, tensors={"weight": copies})
    spread = np.zeros((48, 9, 1, 1), np.float32)
    spread[np.arange(48), 3 * (np.arange(48) // 16)] = 1
    value = builder.add("conv2d", "tail", value, tensors={"weight": spread})
    graph = builder.finish(builder.add("pixel_shuffle", "shuffle", value, attrs={"factor": 4}))
    write_packed(PackedModel(graph=graph, tensors=builder.tensors), file)
    content = file.read_bytes()
    assert quantize(places) == 1
    error = capsys.readouterr().err
    assert "PrecisionCostError" in error and "less than 0.02 dB" in error and "int8: SetA +" in error
    assert file.read_bytes() == content
    assert (
        main(["upscale", "-i", str(places / "photos"), "-o", str(places), "-m", str(file), "--precision", "int8"]) == 2
    )
    assert "bam quantize" in capsys.readouterr().err
    # An earlier offer does not outlive a measurement that refuses it.
    assert quantize(places, "--precision", "int16", calibrate="bright") == 0
    assert quantize(places, "--precision", "int16") == 1
    assert file.read_bytes() == content


@pytest.mark.parametrize("calibrate", ["SetA", ".", "Set5/photos"])
def test_benchmarks_are_not_calibrated_on(places, capsys, calibrate):
    (places / "Set5/photos").mkdir(parents=True)
    cv2.imwrite(str(places / "Set5/photos/0.png"), np.zeros((64, 64, 3), np.uint8))
    assert quantize(places, calibrate=calibrate) == 2
    assert "CalibrationError" in capsys.readouterr().err


def test_other_wrong_arguments_are_named(places, capsys):
    (places / "small").mkdir()
    cv2.imwrite(str(places / "small/0.png"), np.zeros((3, 9, 3), np.uint8))
    for calibrate, words in (("nowhere", "no folder at"), ("small", "too small")):
        assert quantize(places, calibrate=calibrate) == 2
        assert words in capsys.readouterr().err
    assert quantize(places, "--benchmarks", str(places / "SetA"), str(places / "photos/../SetA")) == 2
    assert "a name twice" in capsys.readouterr().err
