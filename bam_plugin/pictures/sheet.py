"""Comparison pictures as papers print them: the image with a box, and the box enlarged for HR and for every method.

This module only draws. It knows arrays and captions, and no files, networks and metrics. Images are BGR uint8 (H, W,
3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bam_plugin.errors import BamError
from bam_plugin.pictures.opencv import cv2

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels of the HR image."""

_MARGIN = 10
_LINE = 20
_INK = (20, 20, 20)
_BEST = (190, 20, 20)
_FRAME = (230, 30, 30)


class SheetError(BamError):
    """The arguments do not make a comparison."""


@dataclass(frozen=True)
class Panel:
    """One method's result: a title, its image of the HR image's size, PSNR in dB and SSIM; or the HR image itself."""

    title: str
    image: np.ndarray
    psnr: float | None = None
    ssim: float | None = None


@dataclass(frozen=True)
class ComparedImage:
    """One image: its name, the panels with the HR image first, and the box to enlarge.

    Without measured values an HR image is not needed. Then the first panel is shown as a whole.
    """

    name: str
    panels: Sequence[Panel]
    box: Box


def choose_box(target: np.ndarray, results: Sequence[np.ndarray], size: int) -> Box:
    """The square of `size` pixels where `results` differ most in their error against `target` (H, W, 3).

    With one result it is where its error is greatest. The square is cut to the image.
    """
    height, width = min(size, target.shape[0]), min(size, target.shape[1])
    grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32) for image in (target, *results)]
    errors = np.abs(np.stack(grey[1:]) - grey[0])
    spread = errors.max(axis=0) - errors.min(axis=0) if len(results) > 1 else errors[0]
    sums = cv2.integral(spread)
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(top), int(left), height, width


def draw_sheet(comparisons: Sequence[ComparedImage], *, panel: int = 220) -> np.ndarray:
    """All `comparisons` below each other, as one BGR image; `panel` is the longer side of an enlarged box in pixels."""
    if not comparisons:
        raise SheetError("expected at least one image to compare, found none.")
    blocks = [draw_compared(compared, panel=panel) for compared in comparisons]
    width = max(block.shape[1] for block in blocks)
    blocks = [
        cv2.copyMakeBorder(block, 0, 0, 0, width - block.shape[1], cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for block in blocks
    ]
    return np.concatenate(blocks)


def draw_compared(compared: ComparedImage, *, panel: int = 220) -> np.ndarray:
    """One image: at the left the whole HR image with the box, at the right one or two rows of enlarged boxes.

    Boxes are enlarged without smoothing, so that one sees the pixels themselves. Of several results the best PSNR and
    SSIM are red.
    """
    top, left, height, width = compared.box
    # The HR image is the panel that nothing was measured on; among unmeasured results it is the first one.
    original = next((each for each in compared.panels if each.psnr is None), compared.panels[0])
    target = original.image
    if not (
        0 <= top <= top + height <= target.shape[0] and 0 <= left <= left + width <= target.shape[1] and height > 0
    ):
        raise SheetError(
            f"{compared.name}: the box {compared.box} (top, left, height, width) is not inside the image "
            f"{target.shape[0]}x{target.shape[1]}."
        )
    for each in compared.panels:
        if each.image.shape != target.shape:
            raise SheetError(
                f"{compared.name}: the result of {each.title} is {each.image.shape}, expected {target.shape} as HR."
            )
    factor = panel / max(height, width)
    cell = (round(width * factor), round(height * factor))
    rows = 1 if len(compared.panels) <= 4 else 2
    columns = -(-len(compared.panels) // rows)
    step = (cell[0] + _MARGIN, cell[1] + 2 * _LINE + _MARGIN)
    body = rows * step[1] - _MARGIN
    overview = _fit(target, body - _LINE)
    canvas = Image.new(
        "RGB", (overview.shape[1] + 2 * _MARGIN + columns * step[0], body + 2 * _MARGIN), (255, 255, 255)
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    canvas.paste(_pil(overview), (_MARGIN, _MARGIN))
    shrink = overview.shape[0] / target.shape[0]
    corners = [_MARGIN + round(value * shrink) for value in (left, top, left + width, top + height)]
    draw.rectangle(corners, outline=_FRAME, width=3)
    draw.text((_MARGIN, _MARGIN + overview.shape[0] + 2), compared.name, fill=_INK, font=font)
    measured = any(each.psnr is not None for each in compared.panels)
    best = _best(compared.panels)
    for number, each in enumerate(compared.panels):
        x = overview.shape[1] + 2 * _MARGIN + (number % columns) * step[0]
        y = _MARGIN + (number // columns) * step[1]
        crop = each.image[top : top + height, left : left + width]
        canvas.paste(_pil(cv2.resize(crop, cell, interpolation=cv2.INTER_NEAREST)), (x, y))
        draw.rectangle((x, y, x + cell[0] - 1, y + cell[1] - 1), outline=_FRAME if each is original else _INK)
        draw.text((x, y + cell[1] + 1), each.title, fill=_INK, font=font)
        if measured:
            _draw_values(draw, (x, y + cell[1] + 1 + _LINE), each, best, font)
    return cv2.cvtColor(np.asarray(canvas), cv2.COLOR_RGB2BGR)


def _best(panels: Sequence[Panel]) -> tuple[float | None, float | None]:
    """The greatest PSNR and SSIM; None if there is nothing to compare."""
    psnr = [panel.psnr for panel in panels if panel.psnr is not None]
    ssim = [panel.ssim for panel in panels if panel.ssim is not None]
    return (max(psnr), max(ssim)) if len(psnr) > 1 and len(ssim) > 1 else (None, None)


def _draw_values(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    panel: Panel,
    best: tuple[float | None, float | None],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    if panel.psnr is None or panel.ssim is None:
        draw.text(place, "PSNR / SSIM", fill=_INK, font=font)
        return
    texts = (f"{panel.psnr:.2f}", " / ", f"{panel.ssim:.4f}")
    colours = (_BEST if panel.psnr == best[0] else _INK, _INK, _BEST if panel.ssim == best[1] else _INK)
    x = place[0]
    for text, colour in zip(texts, colours, strict=True):
        draw.text((x, place[1]), text, fill=colour, font=font)
        x += draw.textlength(text, font=font)


def _fit(image: np.ndarray, height: int) -> np.ndarray:
    """`image` at the given height; a wide one is made less high so that it does not dominate the sheet."""
    factor = min(height / image.shape[0], 1.8 * height / image.shape[1])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def _pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
