"""The Upscaler on arrays and files: kinds of pictures, transparency, scales, choice of the network."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.upscale_models import tiny_model, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bam_plugin.engine import Engine
from bam_plugin.packed import PackedModel
from bam_plugin.packed.graph_builder import GraphBuilder
from bam_plugin.packed.zoo import DEFAULT_NETWORK, UnknownModelError, find_model
from bam_plugin.pictures.errors import PictureArrayError, PictureError
from bam_plugin.pictures.transparency import clamp_alpha, fill_transparent
from bam_plugin.upscale import Upscaler
from bam_plugin.upscale.targets import OverwriteError
from bam_plugin.upscale.upscaler import ScaleError, SettingError, UnsupportedModelError


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(tiny_model(), threads=1)


def _photo(height: int = 24, width: int = 30, channels: int = 3) -> np.ndarray:
    """Smooth uint8 pixels away from black and white, where no clipping hides an error."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 60 * np.sin(0.2 * (c + 1) * x + 0.3 * y + c) for c in range(channels)]
    return np.stack(waves, axis=2).astype(np.uint8)


def test_the_result_is_the_engines_clipped_and_rounded(upscaler):
    image = _photo()
    exact = upscaler.engine.run(image.astype(np.float32) / 255)
    expected = np.rint(np.clip(exact, 0, 1) * 255)
    assert (exact < 0).any() or (exact > 1).any() or expected.min() >= 0
    np.testing.assert_array_equal(upscaler.upscale(image), expected.astype(np.uint8))


def test_data_types_differ_only_in_their_steps(upscaler):
    image = _photo()
    eight = upscaler.upscale(image)
    sixteen = upscaler.upscale(image.astype(np.uint16) * 257)
    real = upscaler.upscale(image.astype(np.float32) / 255)
    assert (eight.dtype, sixteen.dtype, real.dtype) == (np.uint8, np.uint16, np.float32)
    assert np.abs(sixteen / 65535 - real).max() <= 0.51 / 65535
    assert np.abs(eight / 255 - real).max() <= 0.51 / 255
    # By type, never by value: a dark 16-bit picture stays dark.
    assert upscaler.upscale(image.astype(np.uint16)).max() < 6553


def test_grey_comes_in_each_shape_and_stays_grey(upscaler):
    grey = _photo(channels=1)
    flat = upscaler.upscale(grey[:, :, 0])
    assert flat.shape == (96, 120)
    np.testing.assert_array_equal(upscaler.upscale(grey), flat[:, :, None])
    three = upscaler.engine.run(grey.repeat(3, axis=2).astype(np.float32) / 255)
    np.testing.assert_allclose(flat, np.clip(three.mean(axis=2), 0, 1) * 255, atol=0.51)


def test_a_network_for_one_channel_takes_colour_channel_by_channel():
    upscaler = Upscaler(tiny_model(channels=1), threads=1)
    image = _photo()
    planes = [upscaler.upscale(image[:, :, c]) for c in range(3)]
    np.testing.assert_array_equal(upscaler.upscale(image), np.stack(planes, axis=2))


def test_networks_that_are_not_for_pictures_are_named():
    with pytest.raises(UnsupportedModelError, match="from 2 to 2"):
        Upscaler(tiny_model(channels=2))


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_opaque_pictures_equal_the_same_without_alpha(upscaler, channels, dtype):
    colour = _photo(channels=channels - 1)
    colour = colour.astype(np.float32) / 255 if dtype == np.float32 else colour.astype(dtype)
    opaque = np.full((*colour.shape[:2], 1), 1 if dtype == np.float32 else np.iinfo(dtype).max, dtype)
    result = upscaler.upscale(np.concatenate([colour, opaque], axis=2))
    np.testing.assert_array_equal(result[:, :, :-1], upscaler.upscale(colour))
    assert (result[:, :, -1] == opaque[0, 0, 0]).all()


@pytest.mark.parametrize("tile", [0, 16])
def test_the_hidden_colour_under_clear_pixels_never_shows(upscaler, tile):
    sprite = np.zeros((40, 40, 4), np.uint8)
    sprite[8:32, 10:30] = (200, 150, 40, 255)
    results = []
    for hidden in ((0, 0, 0), (255, 255, 255), (0, 255, 90)):
        sprite[sprite[:, :, 3] == 0, :3] = hidden
        results.append(upscaler.upscale(sprite, tile=tile))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    # No halo: laid on any background, the edge mixes the sprite's own colour only.
    colour = upscaler.upscale(np.full((40, 40, 3), (200, 150, 40), np.uint8))
    shown = results[0][:, :, 3] > 0
    assert np.abs(results[0][shown][:, :3].astype(int) - colour[shown]).max() <= 1
    # Flat parts of alpha stay exactly flat.
    assert (results[0][44:116, 52:108, 3] == 255).all()
    assert (results[0][:20, :, 3] == 0).all()


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 30), width=st.integers(1, 30), channels=st.sampled_from([2, 4]), seed=st.integers(0, 99))
def test_filling_keeps_what_is_visible_and_takes_only_visible_colours(height, width, channels, seed):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(50, 200, (height, width, channels), np.uint8)
    pixels[:, :, -1] *= generator.random((height, width)) < generator.random()
    clear = pixels[:, :, -1] == 0
    before = pixels.copy()
    filled = fill_transparent(pixels)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(filled[:, :, -1], before[:, :, -1])
    np.testing.assert_array_equal(filled[~clear], before[~clear])
    if clear.any() and not clear.all():
        visible = before[~clear][:, :-1]
        assert (filled[clear][:, :-1] >= visible.min(axis=0) - 1).all()
        assert (filled[clear][:, :-1] <= visible.max(axis=0)).all()


def test_enlarged_alpha_cannot_leave_the_range_around_it():
    alpha = np.zeros((12, 12), np.float32)
    alpha[:, 6:] = 1
    ringing = np.random.default_rng(0).normal(0.5, 2, (24, 24)).astype(np.float32)
    clamped = clamp_alpha(ringing, alpha, 2)
    assert (clamped[:, :8] == 0).all() and (clamped[:, 16:] == 1).all()
    assert clamped.min() >= 0 and clamped.max() <= 1 and 0 < clamped[:, 10:14].mean() < 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 4), (1, 9, 3), (9, 1, 2), (2, 2, 3)])
@pytest.mark.parametrize("scale", [None, 1, 2.5, 8])
def test_tiny_pictures_and_other_scales(upscaler, shape, scale):
    image = np.full(shape, 255, np.uint8)
    result = upscaler.upscale(image, scale=scale)
    factor = scale or 4
    assert result.shape == (round(shape[0] * factor), round(shape[1] * factor), *shape[2:])


def test_another_scale_is_the_networks_result_resized(upscaler):
    image = _photo().astype(np.float32) / 255
    large = upscaler.engine.run(image)
    for scale, (height, width) in {2: (48, 60), 2.5: (60, 75), 6: (144, 180)}.items():
        planes = [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(large[:, :, c])).resize((width, height), Image.Resampling.BICUBIC)
            )
            for c in range(3)
        ]
        for tile in (0, 10):
            result = upscaler.upscale(image, scale=scale, tile=tile)
            np.testing.assert_allclose(result, np.clip(np.stack(planes, axis=2), 0, 1), atol=1e-5)


@pytest.mark.parametrize("scale", [0, -2, 17, float("nan"), "2", True])
def test_impossible_scales_are_named(upscaler, scale):
    with pytest.raises(ScaleError, match="at most 16"):
        upscaler.upscale(_photo(), scale=scale)


@pytest.mark.parametrize("image", [_photo() / 255, _photo().tolist(), Image.fromarray(_photo()), b"photo.png"])
def test_wrong_arrays_are_named(upscaler, image):
    with pytest.raises(PictureArrayError, match=f"found {getattr(image, 'dtype', type(image).__name__)}"):
        upscaler.upscale(image)


@pytest.mark.parametrize("setting", [{"tile": -1}, {"tile": 2.5}, {"tile": "8"}, {"quality": 0}, {"quality": 101}])
def test_wrong_settings_are_named(upscaler, tmp_path, setting):
    Image.fromarray(_photo()).save(tmp_path / "a.png")
    with pytest.raises(SettingError, match=f"{next(iter(setting))} must be a whole number"):
        upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.jpg", **setting)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_progress_adds_up_to_the_picture(upscaler):
    steps: list[int] = []
    upscaler.upscale(_photo(), tile=7, progress=steps.append)
    assert len(steps) == 4 * 5 and sum(steps) == 24 * 30


def test_files_say_what_happened(upscaler, tmp_path):
    source = tmp_path / "a.png"
    Image.fromarray(_photo(channels=4)).save(source)
    result = upscaler.upscale_file(source, tmp_path / "b.jpg", scale=2)
    assert result.size == (60, 48) and result.source_size == (30, 24)
    assert any("resized to 2 times" in note for note in result.notes)
    assert any("transparency" in note for note in result.notes)
    direct = upscaler.upscale_file(source, tmp_path / "b.png")
    assert direct.notes == () and direct.seconds > 0
    with Image.open(tmp_path / "b.png") as image:
        np.testing.assert_array_equal(np.asarray(image), upscaler.upscale(source))


def test_the_source_is_never_overwritten(upscaler, tmp_path):
    source, link = tmp_path / "a.png", tmp_path / "link.png"
    Image.fromarray(_photo()).save(source)
    link.symlink_to(source)
    content = source.read_bytes()
    for destination in (source, link, tmp_path / "x" / ".." / "a.png"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(OverwriteError):
            upscaler.upscale_file(source, destination)
    assert source.read_bytes() == content


def test_a_failure_leaves_the_folder_as_it_was(upscaler, tmp_path):
    source, target = tmp_path / "a.png", tmp_path / "out" / "b.png"
    Image.fromarray(_photo()).save(source)
    upscaler.upscale_file(source, target)
    before = target.read_bytes()
    calls = []

    def stop(pixels: int) -> None:
        calls.append(pixels)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscaler.upscale_file(source, target, tile=10, progress=stop)
    source.write_bytes(source.read_bytes()[:-40])
    with pytest.raises(PictureError):
        upscaler.upscale_file(source, target)
    assert [path.name for path in target.parent.iterdir()] == ["b.png"] and target.read_bytes() == before


def test_a_network_without_finite_radius_is_blended_and_says_so(tmp_path):
    class Global(Upscaler):
        """The tiny network, declared as one whose pixels depend on the whole picture."""

        def __init__(self):
            super().__init__(tiny_model(), threads=1)
            self.receptive_radius = None

    upscaler = Global()
    Image.fromarray(_photo(100, 120)).save(tmp_path / "a.png")
    result = upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.png", tile=40)
    assert any("blended" in note for note in result.notes)
    assert upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.png", tile=0).notes == ()
    tiled, whole = upscaler.upscale(_photo(100, 120), tile=40), upscaler.upscale(_photo(100, 120), tile=0)
    # This network has a small radius in truth, so mixing well inside the windows changes nothing.
    assert np.abs(tiled.astype(int) - whole).max() <= 1


def test_names_and_scales_choose_the_file(tmp_path):
    for name, scale in ((DEFAULT_NETWORK, 2), (DEFAULT_NETWORK, 4), ("other", 3)):
        write_tiny(tmp_path, name=name, scale=scale)

    def chosen(*args, **kwargs) -> str:
        return find_model(*args, zoo=tmp_path, **kwargs).name.removesuffix(".bam.safetensors")

    assert chosen() == chosen(DEFAULT_NETWORK) == chosen(f"{DEFAULT_NETWORK}_x4") == f"{DEFAULT_NETWORK}_x4"
    assert (
        chosen(DEFAULT_NETWORK, scale=2)
        == chosen(f"{DEFAULT_NETWORK}_x4", scale=2)
        == chosen(scale=1.5)
        == f"{DEFAULT_NETWORK}_x2"
    )
    assert chosen(DEFAULT_NETWORK, scale=3) == chosen(DEFAULT_NETWORK, scale=8) == f"{DEFAULT_NETWORK}_x4"
    assert chosen(f"{DEFAULT_NETWORK}_x2", scale=3) == f"{DEFAULT_NETWORK}_x2"
    assert chosen(tmp_path / f"{DEFAULT_NETWORK}_x4.bam.safetensors", scale=2) == f"{DEFAULT_NETWORK}_x2"
    with pytest.raises(UnknownModelError, match=f"{DEFAULT_NETWORK}_x2, {DEFAULT_NETWORK}_x4, other_x3"):
        find_model("none", zoo=tmp_path)
    with pytest.raises(UnknownModelError, match=f"beside it: {DEFAULT_NETWORK}_x2"):
        find_model(tmp_path / "none.bam.safetensors")
    with pytest.raises(UnknownModelError, match="none is shipped"):
        find_model(zoo=tmp_path / "empty")


def test_attributes_tell_what_runs(tmp_path):
    path = write_tiny(tmp_path)
    upscaler = Upscaler(path, isa="reference", threads=1)
    assert (upscaler.scale, upscaler.receptive_radius, upscaler.isa, upscaler.threads) == (4, 3, "reference", 1)
    assert upscaler.path == path and isinstance(upscaler.model, PackedModel) and isinstance(upscaler.engine, Engine)


def test_a_picture_of_a_real_size_uses_several_tiles_when_memory_is_short(monkeypatch):
    builder = GraphBuilder(num_in_ch=1)
    graph = builder.finish(builder.add("resize", "up", builder.input, attrs={"factor": 2, "mode": "bicubic"}))
    upscaler = Upscaler(PackedModel(graph=graph, tensors={}), threads=1)
    steps: list[int] = []
    monkeypatch.setattr("bam_plugin.upscale.upscaler.available_memory", lambda: 4 << 20)
    monkeypatch.setattr("bam_plugin.upscale.upscaler._LEAST_TILE_MEMORY", 1 << 20)
    image = _photo(300, 400, 1)
    large = upscaler.upscale(image, progress=steps.append)
    assert len(steps) > 1
    np.testing.assert_array_equal(large, upscaler.upscale(image, tile=0))


def test_photos_look_enlarged_not_shifted(upscaler, data_root: Path):
    with Image.open(data_root / "Set5" / "butterfly.png") as image:
        small = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    large = upscaler.upscale(np.asarray(small))
    back = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX)).astype(float)
    errors = {
        (dy, dx): np.abs(np.roll(back, (dy, dx), (0, 1)) - np.asarray(small)).mean()
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    assert min(errors, key=lambda shift: errors[shift]) == (0, 0)


def test_a_large_picture_is_never_held_as_a_whole(tmp_path):
    builder = GraphBuilder(num_in_ch=3)
    graph = builder.finish(builder.add("resize", "up", builder.input, attrs={"factor": 4, "mode": "nearest"}))
    upscaler = Upscaler(PackedModel(graph=graph, tensors={}), threads=1)
    Image.fromarray(_photo(1000, 1200)).save(tmp_path / "a.png")
    upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.png", tile=100)  # what is loaded once is not counted
    tracemalloc.start()
    result = upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.png", tile=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pixels = result.size[0] * result.size[1] * 3
    assert peak < pixels / 2, f"{peak / 1e6:.0f} MB for a result of {pixels / 1e6:.0f} MB"
