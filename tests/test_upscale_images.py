"""Reading pictures as they come, and writing them with what belongs to them; every file is made here."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from bam_plugin.packed import picture_errors as errors
from bam_plugin.packed.images import Picture, PictureInfo, check_array, probe_picture, read_picture
from bam_plugin.packed.picture_writer import automatic_format, open_writer, plan_encoding
from bam_plugin.packed.png_stream import PngStream

RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _rgb(height: int = 13, width: int = 17, dtype=np.uint8, channels: int = 3) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(1).integers(0, top, (height, width, channels), dtype, endpoint=True)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _raw_png(path: Path, pixels: np.ndarray, colour_type: int, *chunks: bytes) -> Path:
    """A PNG with exactly the colour type and chunks given, filter 0."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    body = zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour_type, 0, 0, 0)
    parts = [_png_chunk(b"IHDR", header), *chunks, _png_chunk(b"IDAT", body), _png_chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_png_of_every_kind_is_read_exactly(tmp_path, dtype, channels, colour_type):
    # Dark on purpose: 16 bits are known by the header, not by large values.
    pixels = _rgb(dtype=dtype, channels=channels) % 200
    path = _raw_png(tmp_path / "a.png", pixels, colour_type)
    picture, info = read_picture(path), probe_picture(path)
    assert picture.pixels.dtype == dtype
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert (info.width, info.height, info.alpha, info.deep) == (17, 13, channels in (2, 4), dtype == np.uint16)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_a_deep_tiff_is_turned_once(tmp_path, orientation):
    tifffile = pytest.importorskip("tifffile", reason="writes the 16-bit TIFF with an orientation tag")
    files = {}
    for depth, dtype in (("8", np.uint8), ("16", np.uint16)):
        pixels = _rgb().astype(dtype) * (257 if dtype == np.uint16 else 1)
        files[depth] = tmp_path / f"{depth}.tif"
        tifffile.imwrite(files[depth], pixels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    deep = read_picture(files["16"]).pixels
    np.testing.assert_array_equal(deep // 257, read_picture(files["8"]).pixels)
    assert deep.shape[:2] == ((17, 13) if orientation >= 5 else (13, 17))
    info = probe_picture(files["16"])
    assert (info.height, info.width) == deep.shape[:2] and info.deep


@pytest.mark.parametrize("extension", [".tif", ".ppm", ".pgm"])
def test_sixteen_bits_survive_other_formats(tmp_path, extension):
    pixels = _rgb(dtype=np.uint16, channels=1 if extension == ".pgm" else 3)
    path = tmp_path / f"a{extension}"
    assert cv2.imwrite(str(path), pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels)
    np.testing.assert_array_equal(read_picture(path).pixels, pixels)
    assert probe_picture(path).deep


def test_a_ppm_with_another_white_is_scaled_to_full_range(tmp_path):
    pixels = np.array([[[0, 2048, 4095]]], ">u2")
    (tmp_path / "a.ppm").write_bytes(b"P6\n# 12 bits\n1 1\n4095\n" + pixels.tobytes())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.ppm").pixels, [[[0, 32776, 65535]]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_becomes_alpha(tmp_path, dtype, channels):
    pixels = _rgb(dtype=dtype, channels=channels)
    key = _png_chunk(b"tRNS", struct.pack(f">{channels}H", *(int(value) for value in pixels[2, 3])))
    path = _raw_png(tmp_path / "a.png", pixels, {1: 0, 3: 2}[channels], key)
    result = read_picture(path).pixels
    assert result.dtype == dtype and result.shape[2] == channels + 1 and probe_picture(path).alpha
    np.testing.assert_array_equal(result[:, :, :-1], pixels)
    expected = np.where((pixels == pixels[2, 3]).all(axis=2), 0, np.iinfo(dtype).max)
    np.testing.assert_array_equal(result[:, :, -1], expected)


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_become_rgb_with_alpha_where_there_is_some(tmp_path, transparent):
    source = Image.fromarray(_rgb() // 64 * 64).quantize(16)
    options = {"transparency": 3} if transparent else {}
    source.save(tmp_path / "a.png", **options)
    pixels = read_picture(tmp_path / "a.png").pixels
    np.testing.assert_array_equal(pixels[:, :, :3], np.asarray(source.convert("RGB")))
    assert pixels.shape[2] == (4 if transparent else 3)
    if transparent:
        np.testing.assert_array_equal(pixels[:, :, 3] == 0, np.asarray(source) == 3)


def test_black_and_white_and_grey_files_stay_grey(tmp_path):
    grey = _rgb(channels=1)[:, :, 0]
    Image.fromarray(grey > 127).save(tmp_path / "one_bit.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "one_bit.png").pixels[:, :, 0], (grey > 127) * 255)
    Image.fromarray(grey).save(tmp_path / "grey.bmp")
    np.testing.assert_array_equal(read_picture(tmp_path / "grey.bmp").pixels[:, :, 0], grey)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", ".tif"])
def test_exif_rotation_is_applied(tmp_path, orientation, extension):
    from PIL import ImageOps

    block = np.zeros((48, 80, 3), np.uint8)
    block[:24, :32], block[24:, 64:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{extension}"
    Image.fromarray(block).save(path, exif=exif, quality=100)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_picture(path).pixels, expected)
    info = probe_picture(path)
    assert (info.height, info.width) == expected.shape[:2]


def test_exif_and_profile_travel_but_not_what_would_be_wrong(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769).update({0x9003: "2026:01:02 03:04:05", 0xA002: 17, 0xA003: 13, 0x927C: b"notes"})
    exif.get_ifd(0x8825)[1] = "N"
    Image.fromarray(_rgb()).save(tmp_path / "a.jpg", exif=exif, icc_profile=RGB_PROFILE)
    picture = read_picture(tmp_path / "a.jpg")
    for extension in ("png", "jpg", "webp"):
        target = tmp_path / f"out.{extension}"
        _write(target, extension, picture.pixels, picture)
        with Image.open(target) as image:
            image.load()
            assert image.info["icc_profile"] == RGB_PROFILE
            kept = image.getexif()
            assert kept[0x010F] == "Maker" and 0x0112 not in kept and kept.get_ifd(0x8825)[1] == "N"
            inner = kept.get_ifd(0x8769)
            assert inner[0x9003] == "2026:01:02 03:04:05" and not {0xA002, 0xA003, 0x927C} & set(inner)


def test_png_colour_chunks_travel(tmp_path):
    gamma = struct.pack(">I", 100000)
    path = _raw_png(tmp_path / "a.png", _rgb(), 2, _png_chunk(b"gAMA", gamma))
    picture = read_picture(path)
    _write(tmp_path / "b.png", "png", picture.pixels, picture)
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["gamma"] == pytest.approx(1.0)


def _cmyk_profile() -> bytes:
    """An ICC profile whose inks are shades of grey: one table, L* = 100 minus the inks' shares of 10, 20, 30, 40."""
    corners = np.indices((2, 2, 2, 2)).reshape(4, -1).T  # the first ink varies slowest
    grid = np.full((16, 3), 128, np.uint8)
    grid[:, 0] = np.rint((100 - corners @ [10, 20, 30, 40]) * 2.55)
    line = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * line + grid.tobytes() + 3 * line
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(8 + 2 + 1 + 67)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    blocks = [(b"desc", text), (b"wtpt", white), (b"A2B0", table)]
    offset, directory, body = 128 + 4 + 12 * len(blocks), struct.pack(">I", len(blocks)), b""
    for name, data in blocks:
        data += bytes(-len(data) % 4)
        directory += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s12s4s", offset + len(body), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ", bytes(12), b"acsp"
    )
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + directory + body


@pytest.mark.parametrize(
    ("profile", "note", "expected"),
    [
        (None, "without a profile", [255, 0, 0]),
        (_cmyk_profile(), "with the embedded profile", [119, 119, 119]),  # L* = 50
        (b"junk" * 40, "profile is broken", [255, 0, 0]),
    ],
)
def test_cmyk_becomes_rgb(tmp_path, profile, note, expected):
    cmyk = Image.new("CMYK", (9, 7), (0, 255, 255, 0))
    cmyk.save(tmp_path / "a.jpg", quality=100, icc_profile=profile)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.pixels.shape == (7, 9, 3) and picture.icc_profile is None
    assert any(note in text for text in picture.notes)
    np.testing.assert_allclose(picture.pixels[3, 3], expected, atol=3)


def test_a_profile_that_does_not_fit_is_left_out(tmp_path):
    Image.fromarray(_rgb()[:, :, 0]).save(tmp_path / "a.png", icc_profile=RGB_PROFILE)
    picture = read_picture(tmp_path / "a.png")
    assert picture.icc_profile is None and any("profile" in note for note in picture.notes)


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "ünïcode 写真.png"
    Image.fromarray(_rgb()).save(path, format="JPEG")
    assert probe_picture(path).format == read_picture(path).format == "JPEG"


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first_is_used_and_that_is_said(tmp_path, extension):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / f"a.{extension}")
    assert picture.pixels[4, 4, 0] > 200 and picture.notes == ["only the first of 3 frames is used"]


def test_float_tiff_in_unit_range_is_read_and_others_refused(tmp_path):
    values = np.random.default_rng(0).random((5, 6), np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels[:, :, 0], values)
    for bad in (values * 255, (values * 70000).astype(np.int32)):
        Image.fromarray(bad).save(tmp_path / "b.tif")
        with pytest.raises(errors.UnsupportedPictureError, match=r"b\.tif: "):
            read_picture(tmp_path / "b.tif")


def test_sizes_are_refused_before_anything_is_decoded(tmp_path):
    # 60000 x 60000 pixels in 100 bytes: 10.8 GB if it were decoded.
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", zlib.compress(b"")) + b""
    (tmp_path / "bomb.png").write_bytes(content)
    for read in (probe_picture, read_picture):
        with pytest.raises(errors.PictureTooLargeError, match=r"3600\.0 megapixels.*limit of 100 .*--max"):
            read(tmp_path / "bomb.png")
    Image.fromarray(_rgb(10, 11)).save(tmp_path / "small.png")
    with pytest.raises(errors.PictureTooLargeError):
        read_picture(tmp_path / "small.png", max_pixels=109)
    assert read_picture(tmp_path / "small.png", max_pixels=110).pixels.shape == (10, 11, 3)


def test_the_limit_can_be_raised_above_pillows_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.fromarray(_rgb(40, 40)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "a.png").pixels.shape == (40, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 50


@pytest.mark.parametrize("kind", ["png", "png16", "jpg", "webp", "tif", "bmp", "gif"])
def test_truncated_files_are_named(tmp_path, kind):
    path = tmp_path / f"a.{kind.removesuffix('16')}"
    pixels = cv2.resize(_rgb(8, 8), (150, 150))  # smooth enough that every format needs all its bytes
    if kind == "png16":
        deep = pixels.astype(np.uint16) * 257
        _write(path, "png", deep, _plain(deep))
    else:
        Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises((errors.DamagedPictureError, errors.UnknownPictureError), match=r"a\."):
            read_picture(path)


def test_what_is_no_picture_is_named(tmp_path):
    for content in (b"", b"x", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", b"<svg/>" * 100):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises((errors.UnknownPictureError, errors.DamagedPictureError)):
            read_picture(tmp_path / "a.png")
    for path in (tmp_path, tmp_path / "none.png", Path("/dev/null")):
        with pytest.raises(errors.PictureAccessError):
            read_picture(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float64), "float64"),
        (np.zeros((4, 4, 5), np.uint8), r"\(4, 4, 5\)"),
        (np.zeros((4, 0, 3), np.uint8), r"\(4, 0, 3\)"),
        (np.zeros(4, np.uint8), "shape"),
        (np.full((2, 2), 255, np.float32), "found 255 to 255"),
        (np.full((2, 2), np.nan, np.float32), "nan"),
        (np.full((2, 2), -0.5, np.float32), "-0.5"),
        (np.zeros((2, 2), np.int16), "int16"),
    ],
)
def test_arrays_that_are_no_pictures_are_named(array, message):
    with pytest.raises(errors.PictureArrayError, match=message):
        check_array(array)


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
    pixels = _rgb(height, width, dtype, channels)
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
    _write(tmp_path / f"a.{extension}", extension, pixels, _plain(pixels))
    with Image.open(tmp_path / f"a.{extension}") as image:
        loaded = np.asarray(image.convert("RGBA"))
    if channels in (1, 3):
        np.testing.assert_allclose(loaded[:, :, :3], 100, atol=2)
    elif extension == "webp":
        assert (loaded[:, :, 3] == 0).all()
    else:  # transparent is white in a format without transparency
        np.testing.assert_allclose(loaded[:, :, :3], 255, atol=2)


def test_losses_are_said_and_impossible_sizes_refused():
    def plan(format: str, channels: int, dtype, *, width: int = 10, **metadata):
        picture = Picture(pixels=np.zeros((2, 2, channels), dtype), format="PNG", **metadata)
        return plan_encoding(format, picture, width=width, height=10)

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


def test_the_automatic_format():
    def choose(format: str, *, width: int = 4000, alpha: bool = False, deep: bool = False) -> str:
        info = PictureInfo(width=1000, height=750, format=format, alpha=alpha, deep=deep)
        return automatic_format(info, width=width, height=3000)

    assert [choose(format) for format in ("JPEG", "MPO", "WEBP", "PNG", "GIF")] == ["jpg", "jpg", "webp", "png", "png"]
    assert choose("JPEG", width=65536) == choose("WEBP", width=16384) == choose("JPEG", alpha=True) == "png"
    assert choose("WEBP", deep=True) == "png" and choose("WEBP", alpha=True) == "webp"
    # 12 megapixels enlarged four times: the WebP encoder alone would take 2.5 GB.
    assert automatic_format(PictureInfo(4000, 3000, "WEBP", False, False), width=16000, height=12000) == "png"
    assert automatic_format(PictureInfo(4000, 3000, "JPEG", False, False), width=16000, height=12000) == "jpg"


def test_an_exif_block_of_the_largest_size_is_kept(tmp_path):
    pixels = _rgb()
    picture = Picture(pixels=pixels, format="JPEG", exif=b"Exif\0\0" + bytes(65533 - 6))
    _write(tmp_path / "a.jpg", "jpg", pixels, picture)
    with Image.open(tmp_path / "a.jpg") as image:
        assert len(image.info["exif"]) == 65533


def _plain(pixels: np.ndarray) -> Picture:
    return Picture(pixels=pixels, format="PNG")


def _write(path: Path, format: str, pixels: np.ndarray, picture: Picture) -> None:
    height, width, _ = pixels.shape
    with open_writer(path, plan_encoding(format, picture, width=width, height=height)) as writer:
        writer.write(pixels[: height // 2])
        writer.write(pixels[height // 2 :])
