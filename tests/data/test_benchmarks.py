"""Benchmarks: every usual layout, grey images, and the published bicubic numbers out of `bam test` itself."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.data_images import picture, write
from helpers.places import OPTIONS

from bam_plugin.cli import main
from bam_plugin.data.benchmarks import find_benchmarks, find_hr_images, prepare_benchmark
from bam_plugin.data.image_sets import find_image_sets
from bam_plugin.data.images import read_image
from bam_plugin.data.storage import AlreadyPreparedError
from bam_plugin.errors import BamError
from bam_plugin.pictures.imresize import imresize

# Measured with MATLAB's conventions (Y of BT.601, 8 bits, borders cut); published: the same within 0.02 dB.
BICUBIC = {
    ("Set5", 2): (33.652, 0.9296), ("Set5", 3): (30.388, 0.8681), ("Set5", 4): (28.418, 0.8103),
    ("Set14", 2): (30.227, 0.8684), ("Set14", 3): (27.539, 0.7735), ("Set14", 4): (25.999, 0.7018),
    ("B100", 2): (29.554, 0.8429), ("B100", 3): (27.204, 0.7386), ("B100", 4): (25.959, 0.6673),
}  # fmt: skip


def run_bicubic(folder: Path, scale: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict]:
    """`bam test` on the shipped option file, datasets/ below `folder`; the rows of results.json by set."""
    monkeypatch.chdir(folder)
    options = str(OPTIONS / f"test/Bicubic/test_Bicubic_x{scale}.yml")
    assert main(["test", "-opt", options, "--force_yml", "val:save_img=false"]) == 0
    document = json.loads((folder / f"results/Bicubic_x{scale}/results.json").read_text())
    return {row["dataset"]: row for row in document["results"]}


@pytest.fixture(scope="module")
def prepared(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bicubic")
    output = str(folder / "datasets")
    assert main(["prepare", "benchmark", "--root", str(data_root), "--output", output, "--quiet"]) == 0
    return folder


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bam_test_reproduces_the_published_bicubic_numbers(
    prepared: Path, scale: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_bicubic(prepared, scale, monkeypatch)
    assert {name: row["images"] for name, row in rows.items()} == {"Set5": 5, "Set14": 14, "B100": 100}
    for name, row in rows.items():
        psnr, ssim = BICUBIC[name, scale]
        assert abs(row["psnr"] - psnr) <= 0.02 and abs(row["ssim"] - ssim) <= 0.001, (name, row)
        assert abs(row["psnr_minus_bicubic"]) <= 0.021
    out = capsys.readouterr().out
    assert "| Set14 |" in out and "measured as grey" in out


def test_synthetic_benchmark_is_measured_as_the_literature_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {f"{number}": picture(number, 98, 121) for number in range(4)}
    images["grey"] = picture(9, 90, 90)[..., 0]
    for name, image in images.items():
        write(tmp_path / f"raw/Set5/{name}.png", image)
    prepare_benchmark(tmp_path / "raw/Set5", tmp_path / "datasets", scales=(4,), progress=False)
    rows = run_bicubic(tmp_path, 4, monkeypatch)
    assert list(rows) == ["Set5"], "missing sets are left out"

    expected = []
    for image in images.values():
        image = image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4]
        result = imresize(imresize(image, scale=1 / 4), scale=4)
        if image.ndim == 3:
            image, result = (np.rint(16 + x[..., ::-1] @ [65.481, 128.553, 24.966] / 255) for x in (image, result))
        error = (image.astype(float) - result)[4:-4, 4:-4]
        expected.append(10 * np.log10(255**2 / np.mean(error**2)))
    # The network's float32 may round a pixel in ten thousand the other way.
    assert rows["Set5"]["psnr"] == pytest.approx(np.mean(expected), abs=2e-3)


def test_metrics_agree_with_basicsr_where_it_rounds_nothing() -> None:
    from bam_plugin import data

    data.register()
    from basicsr.metrics import calculate_metric

    first, second = picture(1, 40, 50), picture(2, 40, 50)
    grey = {"img": np.repeat(first[..., :1], 3, axis=2), "img2": second[..., 0]}
    same = {"img": first[..., 0], "img2": second[..., 0]}
    for kind in ("psnr", "ssim"):
        ours, theirs = (
            calculate_metric(pair, {"type": name, "crop_border": 2})
            for pair, name in ((grey, f"calculate_{kind}_y"), (same, f"calculate_{kind}"))
        )
        assert ours == pytest.approx(theirs, rel=1e-12)
    # On Y the error of a grey image shrinks by 219 / 255.
    as_colour = {"img": grey["img"], "img2": np.repeat(second[..., :1], 3, axis=2)}
    on_y = calculate_metric(as_colour, {"type": "calculate_psnr_y", "crop_border": 2})
    on_grey = calculate_metric(grey, {"type": "calculate_psnr_y", "crop_border": 2})
    assert on_y - on_grey == pytest.approx(20 * np.log10(255 / 219), abs=0.01)
    with pytest.raises(BamError, match="one size"):
        calculate_metric({"img": first, "img2": second[:-1]}, {"type": "calculate_psnr_y", "crop_border": 2})


LAYOUTS = {
    "hr_only": ("{name}/img1.png", None),
    "hr_folder": ("{name}/HR/img1.png", "{name}/LR_bicubic/X4/img1x4.png"),
    "suffix": ("{name}/img1_HR.png", "{name}/img1_LR.png"),
    "srf": ("{name}/image_SRF_4/img1_SRF_4_HR.png", "{name}/image_SRF_4/img1_SRF_4_LR.png"),
    "srf_bicubic": ("{name}/image_SRF_4/img1_SRF_4_HR.png", "{name}/image_SRF_4/img1_SRF_4_bicubic.png"),
    "original": ("{name}/original/img1.bmp", "{name}/LRbicx4/img1.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["Set5", "bsd100"])
def test_usual_layouts_are_recognised(tmp_path: Path, layout: str, name: str) -> None:
    hr, lr = LAYOUTS[layout]
    image = picture(3, 63, 90)
    expected = write(tmp_path / hr.format(name=name), image)
    if lr is not None:
        write(tmp_path / lr.format(name=name), image[:15, :22])
    ((official, folder),) = find_benchmarks(tmp_path).items()
    assert official == {"bsd100": "B100"}.get(name, name)
    assert find_hr_images(folder) == {"img1": expected}
    made = prepare_benchmark(folder, tmp_path / "out", name=official, scales=(2, 3, 4), progress=False)
    assert made.images == 1
    for scale in (2, 3, 4):
        gt = read_image(tmp_path / f"out/{official}/GTmod{scale}/img1.png")
        np.testing.assert_array_equal(gt, image[: 63 // scale * scale, : 90 // scale * scale])
        small = read_image(tmp_path / f"out/{official}/LRbicx{scale}/img1.png")
        np.testing.assert_array_equal(small, imresize(gt, scale=1 / scale))


def test_half_size_hr_images_of_another_factor_are_not_taken(tmp_path: Path) -> None:
    image = picture(4, 64, 80)
    write(tmp_path / "Urban100/image_SRF_2/img_001_SRF_2_HR.png", image[::2, ::2])
    expected = write(tmp_path / "Urban100/image_SRF_4/img_001_SRF_4_HR.png", image)
    assert find_hr_images(tmp_path / "Urban100") == {"img_001": expected}


def test_set14_bridge_stays_grey_and_other_grey_looking_files_colour(tmp_path: Path) -> None:
    grey = picture(5, 60, 60)[..., 0]
    for name in ("bridge", "man"):
        write(tmp_path / f"Set14/{name}.png", np.dstack([grey] * 3))
    prepare_benchmark(tmp_path / "Set14", tmp_path / "out", scales=(4,), progress=False)
    shapes = {
        name: cv2.imread(str(tmp_path / f"out/Set14/GTmod4/{name}.png"), cv2.IMREAD_UNCHANGED).shape
        for name in ("bridge", "man")
    }
    assert shapes == {"bridge": (60, 60), "man": (60, 60, 3)}


def test_a_missing_scale_is_added_and_nothing_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "Set5/a.png", picture(6, 60, 60))
    prepare_benchmark(tmp_path / "Set5", tmp_path / "out", scales=(4,), progress=False)
    assert "1 images, expected 5" in caplog.text
    kept = tmp_path / "out/Set5/GTmod4/a.png"
    before = kept.stat().st_mtime_ns
    added = prepare_benchmark(tmp_path / "Set5", tmp_path / "out", scales=(2, 4), progress=False)
    assert added.scales == (2,) and (tmp_path / "out/Set5/LRbicx2/a.png").is_file()
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(AlreadyPreparedError):
        prepare_benchmark(tmp_path / "Set5", tmp_path / "out", scales=(2, 4), progress=False)
    (tmp_path / "Set14").mkdir()
    with pytest.raises(BamError, match="no HR images"):
        prepare_benchmark(tmp_path / "Set14", tmp_path / "out", progress=False)


def test_the_image_sets_are_found_where_the_variable_or_the_folder_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "sets/Set5/baby.png", picture(0, 24, 24))
    monkeypatch.setenv("BAM_DATA_ROOT", str(tmp_path / "sets"))
    assert find_image_sets() == tmp_path / "sets"
    monkeypatch.setenv("BAM_DATA_ROOT", str(tmp_path / "none"))
    with pytest.raises(BamError, match="BAM_DATA_ROOT names"):
        find_image_sets()
    monkeypatch.delenv("BAM_DATA_ROOT")
    # Cut images of `bam prepare` alone are no set.
    write(tmp_path / "datasets/Set5/GTmod4/baby.png", picture(0, 24, 24))
    assert find_image_sets() in (None, Path(__file__).parents[2] / "datasets")
    write(tmp_path / "datasets/Set5/baby.png", picture(0, 24, 24))
    assert find_image_sets() == tmp_path / "datasets"
