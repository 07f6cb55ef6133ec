"""Comparison sheets: the right pixels in the right place, the box where methods differ, `bam compare` as a whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.data_images import picture, write

from bam_plugin import data
from bam_plugin.cli import main
from bam_plugin.errors import BamError
from bam_plugin.pictures.imresize import imresize
from bam_plugin.upscale.sheet import ComparedImage, Panel, SheetError, choose_box, draw_compared, draw_sheet


def contains(sheet: np.ndarray, part: np.ndarray) -> bool:
    _, _, (left, top), _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, part, cv2.TM_SQDIFF))
    return bool((sheet[top : top + part.shape[0], left : left + part.shape[1]] == part).all())


@pytest.mark.parametrize("results", [1, 2, 3, 6])
def test_every_box_is_enlarged_pixel_by_pixel(results: int) -> None:
    target = picture(0, 90, 120)
    panels = [Panel("HR", target)]
    panels += [Panel(f"M{n}", picture(n + 1, 90, 120), 20.0 + n, 0.5 + n / 10) for n in range(results)]
    sheet = draw_compared(ComparedImage("name", panels, (10, 20, 30, 40)), panel=160)
    for panel in panels:
        enlarged = panel.image[10:40, 20:60].repeat(4, axis=0).repeat(4, axis=1)
        # The frame covers the outermost pixels.
        assert contains(sheet, enlarged[2:-2, 2:-2])
    red = (sheet == (20, 20, 190)).all(axis=2).any()
    assert red == (results > 1), "the best values are red when there is something to compare"


def test_box_lies_where_the_results_differ() -> None:
    target = picture(0, 90, 120)
    good, bad = target.copy(), target.copy()
    for image in (good, bad):
        image[5:25, 5:25] = 255 - image[5:25, 5:25]
    bad[50:70, 80:100] = 255 - bad[50:70, 80:100]
    assert choose_box(target, [good, bad], 20) == (50, 80, 20, 20)
    assert choose_box(target, [good], 20) == (5, 5, 20, 20)
    assert choose_box(target, [good], 500) == (0, 0, 90, 120)


def test_what_cannot_be_drawn_is_named() -> None:
    target = picture(0, 40, 40)
    with pytest.raises(SheetError, match="not inside"):
        draw_compared(ComparedImage("a", [Panel("HR", target)], (30, 0, 20, 20)))
    with pytest.raises(SheetError, match="result of X"):
        draw_compared(ComparedImage("a", [Panel("HR", target), Panel("X", target[1:], 1.0, 1.0)], (0, 0, 20, 20)))
    with pytest.raises(SheetError, match="at least one"):
        draw_sheet([])


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
        (["--scale", "1"], "--scale >= 2"),
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
    from bam_plugin.commands.compare import read_result

    target = picture(0, 48, 48)
    for name in ("one_a", "one_b", "two"):
        write(tmp_path / f"{name}.png", target)
    with pytest.raises(BamError, match=r"found one_a\.png, one_b\.png"):
        read_result(tmp_path, "one", target, others=())
    assert (read_result(tmp_path, "one", target, others=("one_b",)) == target).all()
    with pytest.raises(BamError, match="found none"):
        read_result(tmp_path, "three", target, others=())
    write(tmp_path / "two.png", target[:40])
    with pytest.raises(BamError, match="40x48"):
        read_result(tmp_path, "two", target, others=())
