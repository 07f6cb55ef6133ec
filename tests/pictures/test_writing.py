"""Writing pictures with what belongs to them, and the choice of the format."""

from __future__ import annotations

import io
import itertools
import os
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from helpers.picture_files import RGB_PROFILE, plain_picture, png_chunk, random_pixels, raw_png, write_pixels
from helpers.places import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bam_plugin.pictures import errors as errors
from bam_plugin.pictures.formats import FORMATS, PNG, written_formats
from bam_plugin.pictures.png_stream import PngStream
from bam_plugin.pictures.read import Picture, PictureInfo, probe_picture, read_picture
from bam_plugin.pictures.write import automatic_format, plan_encoding


def test_exif_and_profile_travel_but_not_what_would_be_wrong(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769).update({0x9003: "2026:01:02 03:04:05", 0xA002: 17, 0xA003: 13, 0x927C: b"notes"})
    exif.get_ifd(0x8825)[1] = "N"
    Image.fromarray(random_pixels()).save(tmp_path / "a.jpg", exif=exif, icc_profile=RGB_PROFILE)
    picture = read_picture(tmp_path / "a.jpg")
    for extension in ("png", "jpg", "webp"):
        target = tmp_path / f"out.{extension}"
        write_pixels(target, extension, picture.pixels, picture)
        with Image.open(target) as image:
            image.load()
            assert image.info["icc_profile"] == RGB_PROFILE
            kept = image.getexif()
            assert kept[0x010F] == "Maker" and 0x0112 not in kept and kept.get_ifd(0x8825)[1] == "N"
            inner = kept.get_ifd(0x8769)
            assert inner[0x9003] == "2026:01:02 03:04:05" and not {0xA002, 0xA003, 0x927C} & set(inner)


def test_png_colour_chunks_travel(tmp_path):
    gamma = struct.pack(">I", 100000)
    path = raw_png(tmp_path / "a.png", random_pixels(), 2, png_chunk(b"gAMA", gamma))
    picture = read_picture(path)
    write_pixels(tmp_path / "b.png", "png", picture.pixels, picture)
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["gamma"] == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.integers(1, 4),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    smooth=st.booleans(),
)
def test_streamed_png_is_decoded_exactly_by_others(height, width, channels, dtype, cuts, smooth):
    pixels = random_pixels(height, width, dtype, channels)
    if smooth:  # so that every filter gets its turn
        pixels = (np.cumsum(pixels % 5, axis=1) + np.cumsum(pixels % 3, axis=0)).astype(dtype)
    stream = io.BytesIO()
    png = PngStream(stream=stream, width=width, height=height, channels=channels, dtype=dtype)
    edges = [0, *sorted(min(cut, height) for cut in cuts), height]
    for start, stop in itertools.pairwise(edges):
        png.write(pixels[start:stop])
    png.close()
    decoded = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
    if channels == 2:
        decoded = decoded[:, :, [0, 3]]
    elif channels >= 3:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA)
    np.testing.assert_array_equal(decoded.reshape(pixels.shape), pixels)
    if dtype == np.uint8:  # Pillow has no 16-bit colour
        with Image.open(io.BytesIO(stream.getvalue())) as image:
            np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_an_unfinished_png_is_an_error():
    png = PngStream(stream=io.BytesIO(), width=4, height=4, channels=3, dtype=np.uint8)
    with pytest.raises(ValueError, match="4 rows are missing"):
        png.close()
    with pytest.raises(ValueError, match="up to 4 rows"):
        png.write(np.zeros((5, 4, 3), np.uint8))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_jpg_and_webp_hold_what_they_can(tmp_path, extension, channels):
    pixels = np.full((24, 20, channels), 100, np.uint8)
    if channels in (2, 4):
        pixels[:, :, -1] = 0
    write_pixels(tmp_path / f"a.{extension}", extension, pixels, plain_picture(pixels))
    with Image.open(tmp_path / f"a.{extension}") as image:
        loaded = np.asarray(image.convert("RGBA"))
    if channels in (1, 3):
        np.testing.assert_allclose(loaded[:, :, :3], 100, atol=2)
    elif extension == "webp":
        assert (loaded[:, :, 3] == 0).all()
    else:  # transparent is white in a format without transparency
        np.testing.assert_allclose(loaded[:, :, :3], 255, atol=2)


def test_losses_are_said_and_impossible_sizes_refused():
    def plan(format: str, channels: int, dtype, *, width: int = 10, height: int = 10, **metadata):
        picture = Picture(pixels=np.zeros((2, 2, channels), dtype), format=PNG, **metadata)
        return plan_encoding(FORMATS[format], picture, width=width, height=height)

    assert plan("png", 4, np.uint16, icc_profile=b"x" * 99, exif=b"x" * 99999).notes == ()
    assert "8 bits" in plan("jpg", 3, np.uint16).notes[0]
    assert "transparency" in plan("jpg", 4, np.uint8).notes[0]
    assert plan("png", 3, np.float32).dtype is np.uint16
    grey = plan("webp", 1, np.uint8, icc_profile=b"x" * 99)
    assert grey.icc_profile is None and "profile for grey" in grey.notes[0]
    large = plan("jpg", 3, np.uint8, exif=b"x" * 65534)
    assert large.exif is None and "too large" in large.notes[0]
    with pytest.raises(errors.PictureWriteError, match="16383"):
        plan("webp", 3, np.uint8, width=16384)
    assert plan("webp", 3, np.uint8, width=10_000, height=8_000).notes == ()
    # 12 megapixels enlarged four times.
    with pytest.raises(errors.PictureWriteError, match=r"16000 x 12000 .* 3\.1 GB: write a png"):
        plan("webp", 3, np.uint8, width=16_000, height=12_000)


def test_the_guide_lists_every_format():
    rows = []
    for name, format in FORMATS.items():
        encoder = format.encoder
        row = [name, " ".join(format.endings), "yes" if format.animated else "no"]
        if encoder is None:
            row += ["png", "", "", ""]
        else:
            row += [name, "8, 16" if encoder.deep else "8", "yes" if encoder.alpha else "no"]
            row.append("" if encoder.pillow is None else str(encoder.longest_side))
        rows.append("| " + " | ".join(row) + " |")
    assert "\n".join(rows) in (ROOT / "docs/upscale.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", written_formats())
def test_every_format_that_is_written_is_read_again(tmp_path, name):
    for channels in (1, 2, 3, 4):
        pixels = np.full((20, 24, channels), 100, np.uint8)
        write_pixels(tmp_path / "a", name, pixels, plain_picture(pixels))
        picture, encoder = read_picture(tmp_path / "a"), FORMATS[name].encoder
        assert picture.format is FORMATS[name]
        colour, alpha = (1 if channels < 3 and encoder.grey else 3), channels in (2, 4) and encoder.alpha
        if encoder.pillow and alpha:
            colour = 3  # Pillow writes grey with alpha as colour with alpha
        assert picture.pixels.shape == (20, 24, colour + alpha)
        with pytest.raises(errors.PictureWriteError, match=rf"{name} holds at most {encoder.longest_side} pixels"):
            plan_encoding(FORMATS[name], plain_picture(pixels), width=encoder.longest_side + 1, height=1)


@pytest.mark.parametrize("name", sorted(set(written_formats()) - {"png"}))
def test_the_longest_side_can_really_be_written(tmp_path, name):
    pixels = np.zeros((2, FORMATS[name].encoder.longest_side, 3), np.uint8)
    write_pixels(tmp_path / "a", name, pixels, plain_picture(pixels))
    assert probe_picture(tmp_path / "a").width == FORMATS[name].encoder.longest_side


@pytest.mark.parametrize("name", written_formats())
def test_a_full_disk_is_an_error_and_keeps_the_older_file(tmp_path, name):
    path = tmp_path / f"a.{name}"
    path.write_bytes(b"older")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from helpers.picture_files import plain_picture, random_pixels, write_pixels\n"
        "from bam_plugin.files import atomic_path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "pixels = random_pixels(64, 64)\n"
        "try:\n"
        "    with atomic_path(sys.argv[1]) as temporary:\n"
        "        write_pixels(temporary, sys.argv[2], pixels, plain_picture(pixels))\n"
        "except OSError:\n"
        "    print('refused')\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, str(path), name]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_the_automatic_format():
    def choose(format: str, *, width: int = 4000, alpha: bool = False, deep: bool = False, frames: int = 1) -> str:
        info = PictureInfo(width=1000, height=750, format=FORMATS[format], alpha=alpha, deep=deep, frames=frames)
        return automatic_format(info, width=width, height=3000).name

    written = set(written_formats())
    assert {name: choose(name, frames=3) for name in FORMATS} == {
        name: name if name in written else "png" for name in FORMATS
    }
    assert {choose(name) for name in FORMATS} == written - {"gif"}  # 256 colours would spoil a single picture
    assert choose("jpg", width=65501) == choose("webp", width=16384) == choose("jpg", alpha=True) == "png"
    assert choose("webp", deep=True) == "png" and choose("webp", alpha=True) == "webp"
    # 12 megapixels enlarged four times: the WebP encoder alone would take 2.5 GB and more.
    for name, expected in (("webp", "png"), ("avif", "png"), ("jpg", "jpg")):
        info = PictureInfo(4000, 3000, FORMATS[name], alpha=False, deep=False)
        assert automatic_format(info, width=16000, height=12000).name == expected


def test_an_exif_block_of_the_largest_size_is_kept(tmp_path):
    pixels = random_pixels()
    picture = Picture(pixels=pixels, format=FORMATS["jpg"], exif=b"Exif\0\0" + bytes(65533 - 6))
    write_pixels(tmp_path / "a.jpg", "jpg", pixels, picture)
    with Image.open(tmp_path / "a.jpg") as image:
        assert len(image.info["exif"]) == 65533
