"""Broken files by the thousand: only named errors, no crash, nothing left behind. More time: benchmarks/fuzz_*.py."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers.fuzzing import edited_models, mutate, picture_seeds
from helpers.upscale_models import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from bam_plugin.engine import Engine
from bam_plugin.errors import BamError
from bam_plugin.packed import PackedFormatError
from bam_plugin.packed.format import pack_model, unpack_model
from bam_plugin.pictures.animation import read_animation
from bam_plugin.pictures.errors import PictureError
from bam_plugin.pictures.read import probe_picture, read_picture
from bam_plugin.upscale import Upscaler

SEEDS = picture_seeds()
_LIMIT = 1_000_000  # pixels; forged sizes below it are really allocated


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "picture"


@pytest.mark.parametrize("kind", SEEDS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_broken_pictures_raise_only_named_errors(place, kind, seed):
    place.write_bytes(mutate(SEEDS[kind], np.random.default_rng(seed)))
    try:
        probe_picture(place, max_pixels=_LIMIT)
        pixels = read_picture(place, max_pixels=_LIMIT).pixels
        if animation := read_animation(place, max_pixels=_LIMIT):
            assert len(list(animation.frames())) == len(animation.durations)
    except PictureError as error:
        assert str(place) in str(error)
        return
    height, width, channels = pixels.shape
    assert 0 < height * width <= _LIMIT and channels in (1, 2, 3, 4)
    assert pixels.dtype in (np.uint8, np.uint16, np.float32)


@settings(max_examples=800, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_broken_packed_files_raise_only_named_errors(seed):
    data = mutate(pack_model(tiny_model()), np.random.default_rng(seed))
    with contextlib.suppress(PackedFormatError):
        unpack_model(data)


def test_packed_files_with_forged_graphs_raise_only_named_errors_or_run():
    image = np.full((3, 4, 3), 0.5, np.float32)
    ran = 0
    offer = {"ranges": {"tail": [2.0] * 8}, "cost_db": {"Set5": 0.001}, "calibration": {"name": "photos"}}
    model = replace(tiny_model(), metadata={"precisions": {"int8": offer}})
    for data in islice(edited_models(model, np.random.default_rng(5)), 1500):
        try:
            model = unpack_model(data)
            result = Engine(model, threads=1).run(image)
            Engine(model, threads=1, precision="int8").run(image)
        except BamError:
            continue
        ran += 1
        assert result.shape == (3 * model.scale, 4 * model.scale, model.graph.num_out_ch)
    assert ran > 10  # some edits are harmless (free facts, names): the others would prove nothing without them


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(sorted(SEEDS)))
def test_a_broken_picture_leaves_no_result_behind(tmp_path_factory, seed, kind):
    folder = tmp_path_factory.mktemp("out")
    source = folder / "in.png"
    source.write_bytes(mutate(SEEDS[kind], np.random.default_rng(seed)))
    try:
        _upscaler().upscale_file(source, folder / "out.png", max_pixels=10_000)
        expected = {"in.png", "out.png"}
    except PictureError:
        expected = {"in.png"}
    assert {path.name for path in folder.iterdir()} == expected


def _upscaler() -> Upscaler:
    return Upscaler(tiny_model(), threads=1)
