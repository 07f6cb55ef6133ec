"""Tiles: any cut of any picture gives what the whole picture gives, within the memory that was allowed."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from helpers.upscale_models import tiny_model
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bam_plugin.engine import Engine
from bam_plugin.engine.engine import available_isas
from bam_plugin.pictures.resample import resample_bands
from bam_plugin.pictures.tiles import BLEND_OVERLAP, SMALLEST_CORE, Tiling, plan_for_memory, plan_tiles, render_bands
from bam_plugin.upscale import Upscaler
from bam_plugin.upscale.upscaler import from_unit


@pytest.fixture(scope="module", params=[2, 3, 4])
def upscaler(request) -> Upscaler:
    return Upscaler(tiny_model(scale=request.param), isa="numpy", threads=1)


def _picture(height: int, width: int, channels: int, dtype, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).random((height, width, channels), np.float32)
    return values if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile=st.integers(1, 80),
    channels=st.integers(1, 4),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    seed=st.integers(0, 100),
)
def test_tiled_equals_untiled(upscaler, height, width, tile, channels, dtype, seed):
    image = _picture(height, width, channels, dtype, seed)
    if channels in (2, 4):
        image[: height // 2, : width // 2, -1] = 0
    whole = upscaler.upscale(image, tile=0)
    assert whole.shape == (height * upscaler.scale, width * upscaler.scale, channels)
    tiled = upscaler.upscale(image, tile=tile)
    # The float layers of a matrix-multiplication backend may add in another order for another tile shape.
    allowed = {np.uint8: 1, np.uint16: 1, np.float32: 1e-6}[dtype]
    assert np.abs(tiled.astype(np.float64) - whole).max() <= allowed


@pytest.mark.parametrize("scale", [3, 4])
@pytest.mark.parametrize("isa", [name for name in available_isas() if name != "numpy"])
def test_tiled_equals_untiled_bit_for_bit_in_exact_kernels(isa, scale):
    upscaler = Upscaler(tiny_model(scale=scale), isa=isa, threads=2)
    size = (23, 31) if isa == "reference" else (53, 61)
    image = _picture(*size, 3, np.float32, 5)
    whole = upscaler.upscale(image, tile=0)
    for tile in (7, 16, 40):
        np.testing.assert_array_equal(upscaler.upscale(image, tile=tile), whole)


def test_an_overlap_below_the_radius_would_be_seen():
    # Guards the tests above: were the overlap too small, they must be able to tell.
    engine = Engine(tiny_model(), isa="numpy")
    image = _picture(40, 40, 3, np.float32, 1)
    tiling = Tiling((0, 20, 40), (0, 20, 40), overlap=engine.model.receptive_radius - 2, blended=False)
    tiled = _joined(lambda a, b, c, d: engine.run(image[a:b, c:d]), tiling, scale=4, channels=3)
    assert np.abs(tiled - engine.run(image)).max() > 1e-3


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 150), width=st.integers(1, 150), tile=st.integers(1, 100), scale=st.sampled_from([2, 3]))
def test_blending_is_seamless_for_networks_without_radius(height, width, tile, scale):
    image = _picture(height, width, 1, np.float32, 3)
    windows = []

    def render(top, bottom, left, right):
        windows.append((bottom - top, right - left))
        return image[top:bottom, left:right].repeat(scale, axis=0).repeat(scale, axis=1)

    # Where all tiles agree, mixing changes nothing: the weights of the tiles add up to one everywhere.
    tiling = plan_tiles(height, width, tile=tile, radius=None)
    blended = _joined(render, tiling, scale=scale, channels=1)
    np.testing.assert_allclose(blended, image.repeat(scale, axis=0).repeat(scale, axis=1), atol=1e-6)
    assert tiling.blended == (tiling.count > 1)


def test_blending_has_no_step_where_tiles_disagree():
    tiling = plan_tiles(40, 200, tile=100, radius=None)
    values = iter([0.0, 1.0])
    result = _joined(
        lambda a, b, c, d: np.full((2 * (b - a), 2 * (d - c), 1), next(values), np.float32),
        tiling,
        scale=2,
        channels=1,
    )
    steps = np.diff(result[0, :, 0])
    assert steps.min() >= 0 and steps.max() <= 1 / (2 * BLEND_OVERLAP) + 1e-6


@settings(max_examples=100, deadline=None)
@example(height=138, width=1190, radius=None, budget=6768, rows=1)
@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    radius=st.sampled_from([0, 3, 44, None]),
    budget=st.integers(1, 4_000_000),
    rows=st.integers(1, 2000),
)
def test_planned_windows_stay_within_the_budget(height, width, radius, budget, rows):
    tiling = plan_for_memory(height, width, radius=radius, pixel_budget=budget, row_budget=rows)
    for cuts, length in ((tiling.rows, height), (tiling.columns, width)):
        assert cuts[0] == 0 and cuts[-1] == length and list(cuts) == sorted(set(cuts))
    tall = max(min(height, b + tiling.overlap) - max(0, a - tiling.overlap) for a, b in _pairs(tiling.rows))
    wide = max(min(width, b + tiling.overlap) - max(0, a - tiling.overlap) for a, b in _pairs(tiling.columns))
    # Blended cores may not be shorter than their two seams, and so need this much at least.
    core = SMALLEST_CORE if radius is not None else 4 * BLEND_OVERLAP
    least = (core + 2 * tiling.overlap + 1) ** 2
    assert tall * wide <= max(budget, least)
    if radius is not None:
        assert max(b - a for a, b in _pairs(tiling.rows)) <= max(rows, SMALLEST_CORE)


@pytest.mark.parametrize("isa", ["numpy", available_isas()[0]])
@pytest.mark.parametrize("features", [8, 32])
def test_memory_of_a_tile_is_not_underestimated(isa, features):
    engine = Engine(tiny_model(features=features), isa=isa, threads=1)
    image = _picture(300, 500, 3, np.float32, 0)
    need = engine.tile_memory()
    tracemalloc.start()
    from_unit(engine.run(image), np.uint8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= need.per_pixel * 300 * 500 + need.per_column * 500 + need.fixed
    # Nor is it so far off that tiles would be needlessly small.
    assert need.per_pixel * 300 * 500 <= 3 * peak


@settings(max_examples=40, deadline=None)
@given(
    source=st.tuples(st.integers(1, 60), st.integers(1, 20)),
    target=st.tuples(st.integers(1, 90), st.integers(1, 30)),
    cut=st.integers(1, 60),
)
def test_resizing_in_bands_equals_resizing_at_once(source, target, cut):
    image = _picture(*source, 2, np.float32, 0)
    bands = [image[start : start + cut] for start in range(0, source[0], cut)]
    banded = np.concatenate(list(resample_bands(bands, source=source, target=target)))
    whole = np.concatenate(list(resample_bands([image], source=source, target=target)))
    assert banded.shape == (*target, 2)
    np.testing.assert_allclose(banded, whole, atol=2e-6)


def _joined(render, tiling, *, scale, channels) -> np.ndarray:
    bands = render_bands(
        render, tiling, scale=scale, channels=channels, finish=lambda band: band.copy(), dtype=np.float32
    )
    return np.concatenate(list(bands))


def _pairs(cuts):
    return list(itertools.pairwise(cuts))
