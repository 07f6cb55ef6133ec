"""Reading pictures as they come; every file is made here."""

from __future__ import annotations

import concurrent.futures
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.fuzzing import picture_seeds
from helpers.picture_files import RGB_PROFILE, plain_picture, png_chunk, random_pixels, raw_png, write_pixels
from PIL import Image, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from bam_plugin.data.images import read_image
from bam_plugin.pictures import errors as errors
from bam_plugin.pictures.formats import ENDINGS, FORMATS, format_of
from bam_plugin.pictures.read import check_array, probe_picture, read_picture


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_png_of_every_kind_is_read_exactly(tmp_path, dtype, channels, colour_type):
    # Dark on purpose: 16 bits are known by the header, not by large values.
    pixels = random_pixels(dtype=dtype, channels=channels) % 200
    path = raw_png(tmp_path / "a.png", pixels, colour_type)
    picture, info = read_picture(path), probe_picture(path)
    assert picture.pixels.dtype == dtype
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert (info.width, info.height, info.alpha, info.deep) == (17, 13, channels in (2, 4), dtype == np.uint16)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_a_deep_tiff_is_turned_once(tmp_path, orientation):
    tifffile = pytest.importorskip("tifffile", reason="writes the 16-bit TIFF with an orientation tag")
    files = {}
    for depth, dtype in (("8", np.uint8), ("16", np.uint16)):
        pixels = random_pixels().astype(dtype) * (257 if dtype == np.uint16 else 1)
        files[depth] = tmp_path / f"{depth}.tif"
        tifffile.imwrite(files[depth], pixels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    deep = read_picture(files["16"]).pixels
    np.testing.assert_array_equal(deep // 257, read_picture(files["8"]).pixels)
    assert deep.shape[:2] == ((17, 13) if orientation >= 5 else (13, 17))
    info = probe_picture(files["16"])
    assert (info.height, info.width) == deep.shape[:2] and info.deep


@pytest.mark.parametrize("extension", [".tif", ".ppm", ".pgm"])
def test_sixteen_bits_survive_other_formats(tmp_path, extension):
    pixels = random_pixels(dtype=np.uint16, channels=1 if extension == ".pgm" else 3)
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
    pixels = random_pixels(dtype=dtype, channels=channels)
    key = png_chunk(b"tRNS", struct.pack(f">{channels}H", *(int(value) for value in pixels[2, 3])))
    path = raw_png(tmp_path / "a.png", pixels, {1: 0, 3: 2}[channels], key)
    result = read_picture(path).pixels
    assert result.dtype == dtype and result.shape[2] == channels + 1 and probe_picture(path).alpha
    np.testing.assert_array_equal(result[:, :, :-1], pixels)
    expected = np.where((pixels == pixels[2, 3]).all(axis=2), 0, np.iinfo(dtype).max)
    np.testing.assert_array_equal(result[:, :, -1], expected)


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_become_rgb_with_alpha_where_there_is_some(tmp_path, transparent):
    source = Image.fromarray(random_pixels() // 64 * 64).quantize(16)
    options = {"transparency": 3} if transparent else {}
    source.save(tmp_path / "a.png", **options)
    pixels = read_picture(tmp_path / "a.png").pixels
    np.testing.assert_array_equal(pixels[:, :, :3], np.asarray(source.convert("RGB")))
    assert pixels.shape[2] == (4 if transparent else 3)
    if transparent:
        np.testing.assert_array_equal(pixels[:, :, 3] == 0, np.asarray(source) == 3)


def test_black_and_white_and_grey_files_stay_grey(tmp_path):
    grey = random_pixels(channels=1)[:, :, 0]
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
    Image.fromarray(random_pixels()[:, :, 0]).save(tmp_path / "a.png", icc_profile=RGB_PROFILE)
    picture = read_picture(tmp_path / "a.png")
    assert picture.icc_profile is None and any("profile" in note for note in picture.notes)


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "ünïcode 写真.png"
    Image.fromarray(random_pixels()).save(path, format="JPEG")
    assert probe_picture(path).format is read_picture(path).format is FORMATS["jpg"]


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first_is_used_and_that_is_said(tmp_path, extension):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / f"a.{extension}")
    assert picture.pixels[4, 4, 0] > 200 and picture.notes == ["only the first of 3 frames is used"]


def test_every_format_has_a_decoder_and_endings_of_its_own():
    endings = [ending for format in FORMATS.values() for ending in format.endings]
    assert len(endings) == len(set(endings)) and {f".{ending}" for ending in endings} == ENDINGS
    assert all(ending == ending.lower() and "." not in ending for ending in endings)
    for name, format in FORMATS.items():
        assert format.name == name in format.endings
        assert all(format_of(decoder) is format for decoder in format.decoders)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_every_format_is_read(tmp_path, name):
    path = tmp_path / "a.bin"
    pixels = np.full((9, 12, 3), (200, 60, 30), np.uint8)
    Image.init()
    try:
        Image.fromarray(pixels).save(path, FORMATS[name].decoders[0])
    except KeyError:
        pytest.skip(f"this Pillow writes no {name}")
    picture = read_picture(path)
    assert picture.format is FORMATS[name] is probe_picture(path).format
    np.testing.assert_allclose(picture.pixels.astype(int), pixels, atol=6)


@pytest.mark.parametrize("kind", picture_seeds())
def test_training_sees_what_opencv_reads(tmp_path, kind):
    """The kind of image that training uses equals OpenCV's in all but the cases that `pictures.bgr` names."""
    path = tmp_path / "a"
    path.write_bytes(content := picture_seeds()[kind])
    if "cmyk" in kind or "animated" in kind or kind.startswith(("GIF", "AVIF", "WEBP rgba", "TIFF rgba")):
        assert read_image(path).dtype == np.uint8
        return
    for keep_grey, flag in ((False, cv2.IMREAD_COLOR), (True, cv2.IMREAD_ANYCOLOR)):
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), flag | cv2.IMREAD_ANYDEPTH)
        if expected.dtype == np.uint16:
            expected = np.rint(expected / 257).astype(np.uint8)
        np.testing.assert_array_equal(read_image(path, keep_grey=keep_grey), expected)


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
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + b""
    (tmp_path / "bomb.png").write_bytes(content)
    for read in (probe_picture, read_picture):
        with pytest.raises(errors.PictureTooLargeError, match=r"3600\.0 megapixels.*limit of 100 .*--max"):
            read(tmp_path / "bomb.png")
    Image.fromarray(random_pixels(10, 11)).save(tmp_path / "small.png")
    with pytest.raises(errors.PictureTooLargeError):
        read_picture(tmp_path / "small.png", max_pixels=109)
    assert read_picture(tmp_path / "small.png", max_pixels=110).pixels.shape == (10, 11, 3)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see the largest memory")
def test_a_frame_is_refused_before_it_is_filled(tmp_path):
    # 42 bytes whose one frame of 40000 x 40000 pixels is to be disposed of to the background: 1.6 GB when it is opened.
    side = 40000
    content = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    content += (
        b"\x21\xf9\x04\x08" + bytes(4) + b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x01\0\0\x3b"
    )
    (tmp_path / "bomb.gif").write_bytes(content)
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from bam_plugin.pictures.errors import PictureTooLargeError\n"
        "from bam_plugin.pictures.read import probe_picture, read_picture\n"
        "for read in (probe_picture, read_picture):\n"
        "    try:\n"
        "        read(sys.argv[1])\n"
        "    except PictureTooLargeError as error:\n"
        "        assert '1600.0 megapixels exceed the limit' in str(error), error\n"
        "    else:\n"
        "        raise AssertionError(read)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "bomb.gif"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 500_000  # KiB


def test_a_profile_that_is_no_bytes_is_left_out(tmp_path):
    # An ICC tag of type LONG, as a broken writer makes it: Pillow gives a number.
    directory = ImageFileDirectory_v2()
    directory[34675] = 1234567
    directory.tagtype[34675] = TiffTags.LONG
    Image.fromarray(random_pixels()).save(tmp_path / "a.tif", tiffinfo=directory)
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, random_pixels())
    assert picture.icc_profile is None and picture.notes == ["the ICC profile is broken and was left out"]


def test_threads_that_decode_leave_the_filters_of_warnings_alone(tmp_path):
    Image.fromarray(random_pixels(200, 200)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_picture(tmp_path / "a.png"), range(200)))
    assert warnings.filters == before


def test_the_limit_can_be_raised_above_pillows_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.fromarray(random_pixels(40, 40)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "a.png").pixels.shape == (40, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 50


@pytest.mark.parametrize("kind", ["png", "png16", "jpg", "webp", "tif", "bmp", "gif"])
def test_truncated_files_are_named(tmp_path, kind):
    path = tmp_path / f"a.{kind.removesuffix('16')}"
    pixels = cv2.resize(random_pixels(8, 8), (150, 150))  # smooth enough that every format needs all its bytes
    if kind == "png16":
        deep = pixels.astype(np.uint16) * 257
        write_pixels(path, "png", deep, plain_picture(deep))
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
        ([[0, 255], [255, 0]], "found list"),
        (None, "found NoneType"),
        (np.ma.array(np.zeros((2, 2), np.uint8), mask=[[0, 1], [0, 0]]), "masked pixels"),
    ],
)
def test_arrays_that_are_no_pictures_are_named(array, message):
    with pytest.raises(errors.PictureArrayError, match=message):
        check_array(array)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_other_kinds_of_arrays_count_as_what_they_hold():
    pixels = random_pixels(3, 4, channels=1)[:, :, 0]
    for array in (np.matrix(pixels), np.ma.array(pixels), np.ma.array(pixels, mask=False)):
        checked = check_array(array)
        assert type(checked) is np.ndarray and checked.shape == (3, 4, 1)
        np.testing.assert_array_equal(checked[:, :, 0], pixels)
