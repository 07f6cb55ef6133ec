"""Sheets of methods: measured values, the right result for each image, `bam compare --hr` as a whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from helpers.data_images import contains, picture, write

from bam_plugin import data
from bam_plugin.cli import main
from bam_plugin.data.measured_sheet import find_result
from bam_plugin.errors import BamError
from bam_plugin.pictures.imresize import imresize
from bam_plugin.pictures.sheet import choose_box


def test_compare_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.register()
    from bam_plugin.data.metrics import calculate_psnr_y

    images = {name: picture(number, 97, 121) for number, name in enumerate(("one", "one_b", "two"))}
    for name, image in images.items():
        write(tmp_path / f"hr/{name}.png", image)
        # A method that is better than bicubic, saved as `bam test` saves: with the experiment's name behind.
        better = cv2.GaussianBlur(image[:96, :120], (0, 0), 0.6)
        write(tmp_path / f"better/{name}_net_x4.png", better)
    arguments = ["compare", "--hr", str(tmp_path / "hr"), "--scale", "4", "-o", str(tmp_path / "out/sheet.png")]
    assert main([*arguments, "--images", "two", "--method", f"Better={tmp_path / 'better'}"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [["two", "Bicubic"], ["two", "Better"]]
    target = images["two"][:96, :120]
    bicubic = imresize(imresize(target, scale=1 / 4), scale=4)
    assert rows[0][2] == f"{calculate_psnr_y(bicubic, target, 4):.2f}"
    assert float(rows[1][2]) > float(rows[0][2])
    sheet = cv2.imread(str(tmp_path / "out/sheet.png"))
    box = choose_box(target, [bicubic, cv2.GaussianBlur(target, (0, 0), 0.6)], 64)
    crop = target[box[0] : box[0] + 64, box[1] : box[1] + 64]
    enlarged = cv2.resize(crop, (220, 220), interpolation=cv2.INTER_NEAREST)
    assert contains(sheet, enlarged[2:-2, 2:-2])

    # All images, a box by hand; `one_net_x4` is the result of `one`, and `one_b_net_x4` that of `one_b`.
    assert main([*arguments, "--method", f"Better={tmp_path / 'better'}", "--box", "one=0,0,30,40"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--images", "three"], "no HR image three"),
        (["--method", "X=nowhere"], "no folder at nowhere"),
        (["--box", "one=0,0,500,500"], "not inside"),
        (["--scale", "1"], "scale of at least 2"),
    ],
)
def test_compare_names_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    write(tmp_path / "hr/one.png", picture(0, 48, 48))
    output = tmp_path / "sheet.png"
    assert main(["compare", "--hr", str(tmp_path / "hr"), "--scale", "4", "-o", str(output), *changes]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_ambiguous_and_missing_results_are_errors(tmp_path: Path) -> None:
    target = picture(0, 48, 48)
    for name in ("one_a", "one_b", "two"):
        write(tmp_path / f"{name}.png", target)
    with pytest.raises(BamError, match=r"found one_a\.png, one_b\.png"):
        find_result(tmp_path, "one", target, others=())
    assert (find_result(tmp_path, "one", target, others=("one_b",)) == target).all()
    with pytest.raises(BamError, match="found none"):
        find_result(tmp_path, "three", target, others=())
    write(tmp_path / "two.png", target[:40])
    with pytest.raises(BamError, match="40x48"):
        find_result(tmp_path, "two", target, others=())
