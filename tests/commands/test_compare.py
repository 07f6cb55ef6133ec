"""`bam compare IN`: the sheet and the page show the right pixels of both results."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from helpers.upscale_models import write_tiny
from PIL import Image

from bam_plugin.cli import main
from bam_plugin.pictures.imresize import imresize
from bam_plugin.upscale import Upscaler
from bam_plugin.upscale.before_after import enlarge_both, shown


@pytest.fixture
def model(tmp_path) -> str:
    return str(write_tiny(tmp_path))


@pytest.fixture
def picture(tmp_path):
    y, x = np.mgrid[0:40, 0:52]
    pixels = np.stack([128 + 90 * np.sin(0.3 * x + 0.1 * y * c) for c in (1, 2, 3)], axis=2).astype(np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def test_both_results_are_what_they_are_called(model, picture):
    both = enlarge_both(picture, Upscaler(model))
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    np.testing.assert_array_equal(both.bicubic, imresize(pixels, scale=4))
    np.testing.assert_array_equal(both.network, Upscaler(model).upscale(pixels))
    assert both.source_size == (52, 40)
    assert enlarge_both(picture, Upscaler(model), scale=2.5).bicubic.shape == (100, 130, 3)


def test_any_picture_is_shown_as_rgb_on_white():
    clear = np.zeros((2, 2, 4), np.uint16)
    np.testing.assert_array_equal(shown(clear), np.full((2, 2, 3), 255, np.uint8))
    np.testing.assert_array_equal(shown(np.full((2, 2, 1), 0.2, np.float32)), np.full((2, 2, 3), 51, np.uint8))
    half = np.full((1, 1, 2), (0, 51), np.uint8)
    np.testing.assert_array_equal(shown(half), [[[204, 204, 204]]])


def test_the_sheet_shows_the_box_of_both(model, picture, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert main(["compare", str(picture), "-m", model, "-o", str(sheet), "--box-size", "44"]) == 0
    with Image.open(sheet) as image:
        drawn = np.asarray(image.convert("RGB"))
    both = enlarge_both(picture, Upscaler(model))
    # The default panel of 220 pixels enlarges a box of 44 five times.
    for result in (both.bicubic, both.network):
        assert _contains_some_box(drawn, result)


def _contains_some_box(drawn: np.ndarray, result: np.ndarray) -> bool:
    """Whether a 44x44 box of `result`, each pixel as a 5x5 block, stands in the sheet (its frame aside)."""
    boxes = np.lib.stride_tricks.sliding_window_view(result, (8, 8), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    known = {box.tobytes() for box in boxes.reshape(-1, 8, 8, 3)}
    for top in range(0, drawn.shape[0] - 40, 1):
        for left in range(0, drawn.shape[1] - 40, 1):
            block = drawn[top : top + 40, left : left + 40]
            if (block[0, 0] == block[4, 4]).all() and block[2::5, 2::5].tobytes() in known and np.ptp(block) > 20:
                return bool((block[0::5, 0::5] == block[4::5, 4::5]).all())
    return False


def test_the_page_holds_both_results_exactly(model, picture, tmp_path):
    page = tmp_path / "page.html"
    assert main(["compare", str(picture), "-m", model, "--html", "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    held = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    both = enlarge_both(picture, Upscaler(model))
    for data, expected in zip(held, (both.bicubic, both.network), strict=True):
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)
    assert "photo.png: 52x40 enlarged to 208x160" in text


@pytest.mark.parametrize("page", [False, True])
def test_a_bad_picture_does_not_stop_the_rest(model, picture, tmp_path, capsys, page):
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    options = ["-m", model, *(["--html"] if page else [])]
    paths = {name: tmp_path / f"{name}.{'html' if page else 'png'}" for name in ("good", "mixed", "bad")}
    assert main(["compare", str(picture), *options, "-o", str(paths["good"])]) == 0
    inputs = [str(tmp_path / name) for name in ("cut.png", "photo.png", "text.png")]
    capsys.readouterr()
    assert main(["compare", *inputs, *options, "-o", str(paths["mixed"])]) == 1
    tail = capsys.readouterr().err.split("2 of 3 failed:\n")[1]
    assert "cut.png: the picture is damaged" in tail and "text.png: the content is no picture" in tail
    assert paths["mixed"].read_bytes() == paths["good"].read_bytes()
    assert main(["compare", inputs[0], *options, "-o", str(paths["bad"])]) == 1
    assert not paths["bad"].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either pictures to enlarge"),
        (["{picture}", "--hr", "x"], "either pictures to enlarge"),
        (["--hr", "x", "--scale", "4", "--html"], "go with pictures to enlarge"),
        (["{picture}", "-o", "x.jpg"], "ending in .png"),
        (["{picture}", "--html", "-o", "x.png"], "ending in .html"),
        (["{picture}", "-o", "{picture}"], "is an input"),
        (["{picture}.none"], "there is no such file"),
    ],
)
def test_wrong_usage_is_named(model, picture, capsys, arguments, message):
    content = picture.read_bytes()
    assert main(["compare", *(word.format(picture=picture) for word in arguments)]) == 2
    assert message in capsys.readouterr().err and picture.read_bytes() == content
