"""A picture before and after: plain bicubic enlargement beside the network's result, as a sheet or as a page to drag.

Pictures are shown as 8-bit RGB. Transparent ones lie on white. The bicubic is MATLAB's, as in the literature.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bam_plugin.errors import BamError
from bam_plugin.files import atomic_path
from bam_plugin.pictures.bgr import encode_png
from bam_plugin.pictures.imresize import imresize
from bam_plugin.pictures.opencv import cv2
from bam_plugin.pictures.read import MAX_PIXELS, read_picture
from bam_plugin.pictures.sheet import ComparedImage, Panel, choose_box, draw_sheet
from bam_plugin.upscale.plan import find_inputs
from bam_plugin.upscale.slider_page import Slider, slider_page
from bam_plugin.upscale.targets import target_size
from bam_plugin.upscale.upscaler import Upscaler, from_unit, to_unit


@dataclass(frozen=True)
class BeforeAfter:
    """One picture enlarged both ways: uint8 RGB arrays of one shape (H, W, 3), and the small picture's size (W, H)."""

    name: str
    source_size: tuple[int, int]
    bicubic: np.ndarray
    network: np.ndarray


def compare_files(
    inputs: Sequence[str | os.PathLike] | str | os.PathLike,
    output: str | os.PathLike,
    *,
    model: Upscaler | str | os.PathLike | None = None,
    scale: float | None = None,
    box_size: int = 64,
) -> tuple[list[BeforeAfter], dict[Path, Exception]]:
    """Enlarge files, folders and patterns both ways and write `output`: a sheet (.png) or a page (.html).

    `model` and `scale` are as for `UpscaleBatch`; `box_size` is the side of the boxes that a sheet enlarges. Returns
    the pictures, and the error of each file that could not be read. If none could, nothing is written. Raises
    `BamError` if no file can start.
    """
    output = Path(output)
    page = output.suffix.lower() == ".html"
    if output.is_dir() or not (page or output.suffix.lower() == ".png"):
        raise BamError(f"expected an output ending in .png or .html, found {output}.")
    names = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    found = find_inputs([os.fspath(name) for name in names], output=output)
    if any(os.path.realpath(source.path) == os.path.realpath(output) for source in found):
        raise BamError(f"{output} is an input; name another --output.")
    upscaler = model if isinstance(model, Upscaler) else Upscaler(model, scale=scale)
    pictures, errors = [], {}
    for source in found:
        try:
            pictures.append(enlarge_both(source.path, upscaler, scale=scale))
        except Exception as error:  # whatever it is, the next picture may be fine
            errors[source.path] = error
    if pictures:
        with atomic_path(output) as path:
            if page:
                path.write_text(before_after_page(pictures), encoding="utf-8")
            else:
                sheet = before_after_sheet(pictures, box_size=box_size)
                path.write_bytes(encode_png(sheet[:, :, ::-1], level=6))
    return pictures, errors


def enlarge_both(
    path: str | os.PathLike, upscaler: Upscaler, *, scale: float | None = None, max_pixels: int = MAX_PIXELS
) -> BeforeAfter:
    """Read a picture and enlarge it by the network and by bicubic interpolation. Raises `PictureError`."""
    pixels = shown(read_picture(path, max_pixels=max_pixels).pixels)
    network = upscaler.upscale(pixels, scale=scale)
    size = target_size(pixels.shape[:2], scale or upscaler.scale)
    return BeforeAfter(
        name=Path(path).name,
        source_size=(pixels.shape[1], pixels.shape[0]),
        bicubic=imresize(pixels, size=size),
        network=network,
    )


def shown(pixels: np.ndarray) -> np.ndarray:
    """Any picture (H, W, 1..4) as uint8 RGB; transparent parts are laid on white."""
    values = to_unit(pixels)
    if values.shape[2] in (2, 4):
        alpha = values[:, :, -1:]
        values = values[:, :, :-1] * alpha + (1 - alpha)
    return from_unit(np.broadcast_to(values, (*values.shape[:2], 3)), np.uint8)


def before_after_sheet(pictures: Sequence[BeforeAfter], *, box_size: int = 64, network: str = "network") -> np.ndarray:
    """Draw each picture with a box, and the box enlarged from both results; uint8 RGB.

    The box is where the two results differ most.
    """
    comparisons = []
    for picture in pictures:
        panels = [Panel("bicubic", _bgr(picture.bicubic)), Panel(network, _bgr(picture.network))]
        box = choose_box(panels[0].image, [panels[1].image], box_size)
        comparisons.append(ComparedImage(picture.name, panels, box))
    return cv2.cvtColor(draw_sheet(comparisons), cv2.COLOR_BGR2RGB)


def before_after_page(pictures: Sequence[BeforeAfter], *, network: str = "network") -> str:
    """One self-contained HTML page with a draggable divider for each picture."""
    sliders = [
        Slider(
            caption=f"{picture.name}: {_size(picture.source_size)} enlarged to {_size(picture.network.shape[1::-1])}",
            before=picture.bicubic,
            after=picture.network,
            after_name=network,
        )
        for picture in pictures
    ]
    return slider_page(sliders, title=f"Bicubic and {network}")


def _bgr(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)


def _size(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"
