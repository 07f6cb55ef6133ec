"""Comparison sheets: the right pixels in the right place, and the box where methods differ."""

from __future__ import annotations

import pytest
from helpers.data_images import contains, picture

from bam_plugin.pictures.sheet import ComparedImage, Panel, SheetError, choose_box, draw_compared, draw_sheet


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
