"""The overlap guard finds planted benchmark images, however they were cut and resized, and raises no false alarm."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.data_images import picture, write

from bam_plugin.cli import main
from bam_plugin.data.overlap import find_overlaps


def leaks(image: np.ndarray) -> dict[str, np.ndarray]:
    """What may become of a benchmark image in a training set."""
    height, width = image.shape[:2]
    larger = cv2.resize(image, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_CUBIC)
    framed = cv2.resize(picture(77, height, width), (2 * width, 2 * height))
    framed[height // 3 : height // 3 + height, width // 2 : width // 2 + width] = image
    return {
        "copy.png": image,
        "jpeg.jpg": image,
        "half.png": cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "larger.jpg": larger,
        "crop.png": image[height // 5 :, : width * 3 // 4],
        "crop_larger.jpg": larger[: height * 5 // 4, width // 3 :],
        "turned.png": cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
        "tilted.png": cv2.warpAffine(image, cv2.getRotationMatrix2D((width / 2, height / 2), 12, 1.2), (width, height)),
        "darker.png": (image * 0.7).astype(np.uint8),
        "framed.png": framed,
    }


def test_planted_leaks_are_found_and_others_are_not(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"Set5/{number}.png", picture(100 + number, 240, 300))
    planted = {write(tmp_path / "train" / name, image) for name, image in leaks(picture(101, 240, 300)).items()}
    clean = [write(tmp_path / f"train/clean{number}.png", picture(number, 240, 300)) for number in range(6)]
    flat = write(tmp_path / "train/flat.png", np.full((200, 200, 3), 90, np.uint8))
    broken = tmp_path / "train/broken.png"
    broken.write_bytes(b"no image")
    found = find_overlaps([*sorted(planted), *clean, flat, broken], tmp_path, progress=False)
    assert {overlap.image for overlap in found} == planted
    assert {overlap.benchmark for overlap in found} == {"Set5/1"}
    assert all(overlap.correlation > 0.85 for overlap in found)
    assert find_overlaps([flat], tmp_path / "train", progress=False) == []


def test_prepare_warns_and_drops(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    benchmark = picture(100, 240, 300)
    write(tmp_path / "datasets/Set5/HR/woman.png", benchmark)
    write(tmp_path / "in/leak.jpg", benchmark[20:, :250])
    write(tmp_path / "in/good.png", picture(1, 240, 300))
    arguments = ["prepare", "folder", "--input", "in", "--scales", "4", "--whole", "--quiet", "--name"]
    assert main([*arguments, "warned"]) == 0
    assert "2 pairs" in (out := capsys.readouterr().out) and "1 images are in a benchmark too" in out
    assert "leak.jpg shows a part of the benchmark image Set5/woman" in caplog.text
    assert main([*arguments, "dropped", "--drop-overlaps"]) == 0
    assert "1 pairs" in capsys.readouterr().out
    assert main([*arguments, "unchecked", "--benchmarks"]) == 0
    assert "benchmark" not in capsys.readouterr().out


def test_real_training_sets_are_clean_and_a_real_leak_is_found(data_root: Path, tmp_path: Path) -> None:
    benchmark = cv2.imread(str(data_root / "Set14/monarch.png"))
    leak = write(tmp_path / "leak.jpg", cv2.resize(benchmark[60:400, 100:600], None, fx=0.8, fy=0.8))
    for name in ("Set14/monarch", "Set14/face", "B100/108082"):
        write(tmp_path / f"{name}.png", cv2.imread(str(data_root / f"{name}.png")))
    # Another photo of the tiger of B100/108082 is no overlap.
    clean = [data_root / "BSDS400/train/108041.jpg", *sorted((data_root / "CC0_photos").glob("*.png"))[:4]]
    found = find_overlaps([leak, *clean], tmp_path, progress=False)
    assert [(overlap.image, overlap.benchmark) for overlap in found] == [(leak, "Set14/monarch")]
