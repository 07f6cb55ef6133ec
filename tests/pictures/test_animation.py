"""Animations: every frame, duration, number of runs and transparency, read as a viewer shows them and written again."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.upscale_models import tiny_model
from PIL import Image, ImageDraw

from bam_plugin.pictures.animation import read_animation
from bam_plugin.pictures.errors import PictureError, PictureTooLargeError, PictureWriteError
from bam_plugin.pictures.read import probe_picture
from bam_plugin.upscale import Upscaler, upscale_files

DURATIONS = (40, 120, 300, 50)
FORMATS = ("gif", "png", "webp")


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(tiny_model(), threads=1)


def _frames(alpha: bool) -> list[Image.Image]:
    """A disc that moves over a ground, or over nothing."""
    frames = []
    for number in range(len(DURATIONS)):
        frame = Image.new("RGBA", (24, 18), (0, 0, 0, 0) if alpha else (20, 60, 90, 255))
        ImageDraw.Draw(frame).ellipse((2 + 3 * number, 3, 12 + 3 * number, 13), fill=(200, 40, 30, 255))
        frames.append(frame if alpha else frame.convert("RGB"))
    return frames


def _write(path: Path, frames: list[Image.Image], **options) -> Path:
    """As Pillow writes it: parts of frames over those before them."""
    extra = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=list(DURATIONS[: len(frames)]), **extra, **options
    )
    return path


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_frames_are_read_as_a_viewer_shows_them(tmp_path, name, alpha):
    frames = _frames(alpha)
    options = {"disposal": 2} if name == "gif" and alpha else {}
    animation = read_animation(_write(tmp_path / f"a.{name}", frames, loop=3, **options))
    assert animation is not None
    assert animation.size == (24, 18) and animation.durations == DURATIONS and animation.alpha == alpha
    assert animation.plays == (4 if name == "gif" else 3)
    for found, expected in zip(animation.frames(), frames, strict=True):
        expected = np.asarray(expected)
        if alpha:
            np.testing.assert_array_equal(found[:, :, 3], expected[:, :, 3])
            found, expected = found * (found[:, :, 3:] > 0), expected * (expected[:, :, 3:] > 0)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_an_animation_stays_one(tmp_path, upscaler, source, target, alpha):
    options = {"disposal": 2} if source == "gif" and alpha else {}
    path = _write(tmp_path / f"a.{source}", _frames(alpha), loop=0, **options)
    result = upscaler.upscale_file(path, tmp_path / f"b.{target}", quality=100)
    assert result.size == (96, 72) and "4 frames" in result.notes
    before, after = read_animation(path), read_animation(tmp_path / f"b.{target}")
    assert before is not None and after is not None
    assert (after.size, after.durations, after.plays, after.alpha) == ((96, 72), DURATIONS, 0, alpha)
    for small, large in zip(before.frames(), after.frames(), strict=True):
        expected = upscaler.upscale(np.ascontiguousarray(small)).astype(int)
        if target == "png":
            np.testing.assert_array_equal(large, expected)
            continue
        visible = np.ones(expected.shape[:2], bool)
        if alpha:
            half = np.abs(expected[:, :, 3] - 128) < 10
            assert ((large[:, :, 3] >= 128) == (expected[:, :, 3] >= 128))[~half].all()
            visible = (expected[:, :, 3] > 250) & (large[:, :, 3] > 250)
        # A frame that another one was mixed into would differ by tens.
        still = _difference(_as_still(expected, target), expected, visible)
        assert _difference(large, expected, visible) < 2 + 1.2 * still


def _difference(found: np.ndarray, expected: np.ndarray, where: np.ndarray) -> float:
    return float(np.abs(found[where][:, :3].astype(int) - expected[where][:, :3]).mean())


def _as_still(pixels: np.ndarray, name: str) -> np.ndarray:
    """What the format makes of one picture: 256 colours with dithering, or what a lossy encoder leaves."""
    image, stream = Image.fromarray(pixels[:, :, :3].astype(np.uint8)), io.BytesIO()
    if name == "gif":
        return np.asarray(image.quantize(255).convert("RGB"))
    image.save(stream, name, quality=100)
    return np.asarray(Image.open(stream).convert("RGB"))


@pytest.mark.parametrize("name", FORMATS)
def test_it_runs_as_often_as_before(tmp_path, upscaler, name):
    for plays in (1, 2, 5):
        loop = {} if name == "gif" and plays == 1 else {"loop": plays - 1 if name == "gif" else plays}
        _write(tmp_path / f"a.{name}", _frames(False), **loop)
        upscaler.upscale_file(tmp_path / f"a.{name}", tmp_path / f"b.{name}")
        result = read_animation(tmp_path / f"b.{name}")
        assert result is not None and result.plays == plays


def test_frames_that_do_not_change_are_computed_once(tmp_path, upscaler, monkeypatch):
    frames = _frames(False)
    still = [frames[0], frames[0], frames[0], frames[1]]
    animation = _write(tmp_path / "a.webp", still)
    called = []
    monkeypatch.setattr(upscaler.engine, "run", lambda x, run=upscaler.engine.run: called.append(1) or run(x))
    advanced = []
    upscaler.upscale_file(animation, tmp_path / "b.png", progress=advanced.append)
    count = len(read_animation(animation).durations)
    assert len(called) == 2 and sum(advanced) == count * 24 * 18


def test_the_format_of_an_animation(tmp_path, upscaler):
    (tmp_path / "in").mkdir()
    for name in FORMATS:
        _write(tmp_path / "in" / f"{name}.{name}", _frames(False))
    _frames(False)[0].save(tmp_path / "in/still.gif")
    results = upscale_files(tmp_path / "in", tmp_path / "out", model=upscaler)
    assert all(result.error is None for result in results)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "gif.gif",
        "png.png",
        "still.png",
        "webp.webp",
    ]
    assert all(probe_picture(tmp_path / "out" / f"{name}.{name}").frames == 4 for name in FORMATS)
    (first,) = upscale_files(tmp_path / "in/gif.gif", tmp_path / "first.jpg", model=upscaler)
    assert "only the first of 4 frames is used" in first.notes


def test_pages_are_no_frames(tmp_path):
    frames = _frames(False)
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert read_animation(tmp_path / "a.tif") is None and probe_picture(tmp_path / "a.tif").frames == 1


def test_a_stand_in_of_an_apng_is_no_frame(tmp_path):
    frames = _frames(False)
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=50, default_image=True)
    animation = read_animation(tmp_path / "a.png")
    assert animation is not None and len(animation.durations) == 3
    np.testing.assert_array_equal(next(animation.frames()), np.asarray(frames[1]))


def test_our_apng_has_what_the_specification_asks_for(tmp_path, upscaler):
    upscaler.upscale_file(_write(tmp_path / "a.gif", _frames(False), loop=0), tmp_path / "b.png")
    content, position, names, numbers = (tmp_path / "b.png").read_bytes(), 8, [], []
    while position < len(content):
        length, name = struct.unpack(">I4s", content[position : position + 8])
        body = content[position + 8 : position + 8 + length]
        assert struct.unpack(">I", content[position + 8 + length : position + 12 + length])[0] == zlib.crc32(
            name + body
        )
        names.append(name)
        if name in (b"fcTL", b"fdAT"):
            numbers.append(struct.unpack(">I", body[:4])[0])
        position += 12 + length
    assert numbers == list(range(len(numbers))) and names.count(b"fcTL") == 4
    assert names[0] == b"IHDR" and names.index(b"acTL") < names.index(b"IDAT") and names[-1] == b"IEND"


def test_too_many_frames_are_refused(tmp_path, upscaler, monkeypatch):
    path = _write(tmp_path / "a.gif", _frames(False))
    assert read_animation(path, max_pixels=24 * 18) is not None
    monkeypatch.setattr("bam_plugin.pictures.animation._MOST_FRAMES", 3)
    with pytest.raises(PictureTooLargeError, match="4 frames of 24 x 18 pixels exceed 3 times"):
        upscaler.upscale_file(path, tmp_path / "b.gif", max_pixels=24 * 18)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see the largest memory")
def test_a_later_frame_is_refused_before_it_is_filled(tmp_path):
    def frame(side: int) -> bytes:
        # Disposed of to the background; one clear pixel of LZW data.
        control = b"\x21\xf9\x04\x08\x0a\0\0\0"
        return control + b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\0"

    header = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    (tmp_path / "bomb.gif").write_bytes(header + frame(1) + frame(12_000) + frame(12_000) + b"\x3b")
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from bam_plugin.pictures.animation import read_animation\n"
        "from bam_plugin.pictures.errors import PictureError\n"
        "try:\n"
        "    read_animation(sys.argv[1], max_pixels=1_000_000)\n"
        "except PictureError:\n"
        "    print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "bomb.gif"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000  # KiB; 12,000 x 12,000 pixels alone take 140,000, and 576,000 as colour


def test_a_damaged_animation_leaves_nothing_behind(tmp_path, upscaler):
    for name in FORMATS:
        stream = io.BytesIO()
        frames = _frames(True)
        frames[0].save(
            stream, {"gif": "GIF", "png": "PNG", "webp": "WEBP"}[name], save_all=True, append_images=frames[1:]
        )
        for share in (0.3, 0.6, 0.9):
            source = tmp_path / f"a.{name}"
            source.write_bytes(stream.getvalue()[: int(len(stream.getvalue()) * share)])
            try:
                upscaler.upscale_file(source, tmp_path / f"b.{name}")
            except PictureError:
                assert {path.name for path in tmp_path.iterdir()} <= {"a.gif", "a.png", "a.webp"}
            (tmp_path / f"b.{name}").unlink(missing_ok=True)


def test_what_a_format_cannot_hold_is_refused_before_the_work(tmp_path, upscaler, monkeypatch):
    path = _write(tmp_path / "a.webp", [frame.resize((1100, 8)) for frame in _frames(False)])
    monkeypatch.setattr(upscaler.engine, "run", None)
    with pytest.raises(PictureWriteError, match="webp holds at most 16383"):
        upscaler.upscale_file(path, tmp_path / "b.webp", scale=16)
