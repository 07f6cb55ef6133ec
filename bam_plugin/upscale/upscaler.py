"""Upscaler: pictures in, larger pictures out, by a packed network; no torch.

>>> from bam_plugin.upscale import Upscaler
>>> upscaler = Upscaler("bsrn_light")
>>> large = upscaler.upscale(small)  # uint8, uint16 or float32; grey or RGB, with or without alpha
>>> upscaler.upscale_file("photo.jpg", "photo_x4.png")

Any size fits in bounded memory, because the picture is computed in tiles and written in bands of rows.
"""

from __future__ import annotations

import functools
import importlib
import numbers
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bam_plugin.engine.opening import open_engine
from bam_plugin.engine.tile_memory import TileMemory
from bam_plugin.errors import BamError
from bam_plugin.files import atomic_path
from bam_plugin.packed.format import PackedModel, read_model
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.packed.precision import FLOAT
from bam_plugin.packed.zoo import find_model
from bam_plugin.pictures.animation import Animation, check_animation, read_animation, write_animation
from bam_plugin.pictures.formats import PictureFormat
from bam_plugin.pictures.read import MAX_PIXELS, check_array, read_picture
from bam_plugin.pictures.resample import resample_bands
from bam_plugin.pictures.tiles import Tiling, available_memory, plan_for_memory, plan_tiles, render_bands
from bam_plugin.pictures.transparency import NEIGHBOURHOOD, clamp_alpha, fill_transparent
from bam_plugin.pictures.write import (
    DEFAULT_QUALITY,
    encoder_bytes,
    encoder_of,
    format_of_name,
    open_writer,
    plan_encoding,
)
from bam_plugin.upscale.targets import refuse_same_file, target_size

Progress = Callable[[int], None]
"""Called after each tile with the number of input pixels that it finished; they add up to width * height."""

MAX_SCALE = 16
MEMORY = 1200 << 20
"""Bytes that one picture should not exceed (without the array of the result): picture, encoder, band and tile.

They are fewer if less than twice this is free. Tiles get the rest. Large tiles waste less on their overlaps.
"""

_LEAST_TILE_MEMORY = 128 << 20
_BAND_MEMORY = 48 << 20


class UnsupportedModelError(BamError):
    """The packed network does not map pictures to pictures."""


class ScaleError(BamError):
    """A scale is not a number in the allowed range."""


class SettingError(BamError):
    """A tile size or a quality is not a whole number in its range."""


@dataclass(frozen=True)
class UpscaleResult:
    """The result of one file: sizes (width, height) in pixels, time in seconds, and notes for a person."""

    source: Path
    destination: Path
    source_size: tuple[int, int]
    size: tuple[int, int]
    tiles: int
    seconds: float
    notes: tuple[str, ...]


class Upscaler:
    """A packed network that enlarges pictures: arrays, files, animations and clips.

    Colours are used as stored (an embedded ICC profile is kept, not applied). Grey pictures pass through a colour
    network as three equal channels and are averaged. Results are clipped to the range of the data type.
    """

    scale: int
    """The network's own magnification. For other scales its result is resized (bicubic)."""
    receptive_radius: int | None
    """Pixels of the small picture around a pixel that decide its result. None: there is no finite number (attention),
    and tiles are blended instead of joined."""
    isa: str
    """Instruction set whose kernels run, as chosen by the caller, BAM_ISA, or the processor."""
    threads: int
    """Threads that the kernels use. Results do not depend on it (a mixed network's may, in PyTorch's last bits)."""
    precision: str
    """Precision of the float layers, as chosen by the caller."""
    model: PackedModel | MixedModel
    """Graph (or layers), weights and metadata of the file."""
    path: Path | None
    """The packed file, or None if the network came as a model."""

    def __init__(
        self,
        model: str | os.PathLike | PackedModel | MixedModel | None = None,
        *,
        scale: float | None = None,
        isa: str | None = None,
        threads: int | None = None,
        precision: str = FLOAT,
    ):
        """`model` is a packed file, a name of the zoo, a model that was read, or None for the zoo's default.

        `scale` chooses among the files of a network the one nearest to it. `precision` is "fp32", or "int8" or "int16"
        if the file offers it. They are faster, for a loss that `bam inspect` shows. Raises `BamError`s that name the
        fault of the file or of the choice, and `MissingDependencyError` for a mixed network without torch.
        """
        self.path = None
        if not isinstance(model, PackedModel | MixedModel):
            self.path = find_model(model, scale=scale)
            model = read_model(self.path)
        if model.num_in_ch not in (1, 3) or model.num_out_ch != model.num_in_ch:
            raise UnsupportedModelError(
                f"pictures need a network from 1 to 1 or from 3 to 3 channels, {self.path or 'this one'} goes from "
                f"{model.num_in_ch} to {model.num_out_ch}; run it with Engine"
            )
        self.model = model
        self.engine = open_engine(model, isa=isa, threads=threads, precision=precision)
        self.scale, self.receptive_radius = model.scale, model.receptive_radius
        self.isa, self.threads = self.engine.isa, self.engine.threads
        self.precision = precision

    @functools.cached_property
    def _tile_memory(self) -> TileMemory:
        return self.engine.tile_memory()

    def upscale(
        self,
        image: np.ndarray | str | os.PathLike,
        *,
        scale: float | None = None,
        tile: int | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return the enlarged picture as an array of the same data type and number of axes.

        `image` is a path, or an array (H, W) or (H, W, C): C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; uint8 in
        0..255, uint16 in 0..65535 or float32 in [0, 1]. `tile` is the edge of a tile in input pixels, 0 for no tiles,
        None to choose by the memory at hand. Raises `PictureArrayError`, `PictureError`, `ScaleError`, `SettingError`.
        """
        pixels = read_picture(image).pixels if isinstance(image, (str, os.PathLike)) else image
        checked = check_array(pixels)
        height, width = target_size(checked.shape[:2], self._scale(scale))
        result = np.empty((height, width, checked.shape[2]), checked.dtype)
        row = 0
        for band in self._bands(checked, (height, width), checked.dtype, self._plan(checked, tile), progress):
            result[row : row + len(band)] = band
            row += len(band)
        return result[:, :, 0] if pixels.ndim == 2 else result

    def upscale_file(
        self,
        source: str | os.PathLike,
        destination: str | os.PathLike,
        *,
        scale: float | None = None,
        tile: int | None = None,
        quality: int = DEFAULT_QUALITY,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> UpscaleResult:
        """Upscale a picture file into another, whose name's ending (.png, .jpg, .webp, ...) decides the format.

        The destination appears when it is complete, and an older file of that name stays until then. Bit depth, alpha,
        ICC profile and EXIF are kept as far as the format holds them. An animation keeps its frames, their durations
        and how often it runs, in a format that holds animations. `quality` 1..100 is for the formats that lose detail;
        `max_pixels` limits the size of the source. Raises `PictureError`, `ScaleError`, `SettingError`; it never
        writes to the source.
        """
        started = time.perf_counter()
        source, destination = Path(source), Path(destination)
        refuse_same_file(source, destination)
        scale = self._scale(scale)
        _check_whole("quality", quality, 1, 100)
        format = format_of_name(destination)
        if encoder_of(format).animated and (animation := read_animation(source, max_pixels=max_pixels)):
            return self._upscale_animation(animation, destination, format, scale, tile, quality, progress)
        picture = read_picture(source, max_pixels=max_pixels)
        pixels = picture.pixels
        height, width = target_size(pixels.shape[:2], scale)
        encoding = plan_encoding(format, picture, width=width, height=height)
        tiling = self._plan(pixels, tile, encoder_bytes(format, width=width, height=height))
        with atomic_path(destination) as temporary, open_writer(temporary, encoding, quality=quality) as writer:
            for band in self._bands(pixels, (height, width), encoding.dtype, tiling, progress):
                writer.write(band)
        return UpscaleResult(
            source=source,
            destination=destination,
            source_size=(pixels.shape[1], pixels.shape[0]),
            size=(width, height),
            tiles=tiling.count,
            seconds=time.perf_counter() - started,
            notes=(*picture.notes, *encoding.notes, *self._scale_notes(scale), *self._tiling_notes(tiling)),
        )

    def upscale_video(self, source: str | os.PathLike, destination: str | os.PathLike, **options: Any) -> Any:
        """Upscale a clip into another one. Options and result are those of `upscale_video` in `video/pipeline.py`.

        Needs PyAV (`pip install 'bam-plugin[video]'`).
        """
        video = importlib.import_module("bam_plugin.upscale.video.pipeline")  # it needs this module
        return video.upscale_video(self, source, destination, **options)

    def _upscale_animation(
        self,
        animation: Animation,
        destination: Path,
        format: PictureFormat,
        scale: float,
        tile: int | None,
        quality: int,
        progress: Progress | None,
    ) -> UpscaleResult:
        """Upscale frame by frame. A frame that equals the one before is not computed again."""
        started = time.perf_counter()
        height, width = target_size(animation.size[::-1], scale)
        notes = check_animation(animation, format, width=width, height=height)

        def enlarged() -> Iterator[np.ndarray]:
            before, large = np.empty(0), np.empty(0)
            for frame in animation.frames():
                if not np.array_equal(frame, before):
                    before, large = frame, self.upscale(frame, scale=scale, tile=tile, progress=progress)
                elif progress is not None:
                    progress(frame.shape[0] * frame.shape[1])
                yield large

        with atomic_path(destination) as temporary:
            write_animation(temporary, enlarged(), animation, format, quality=quality)
        tiling = self._plan(np.empty((*animation.size[::-1], 4 if animation.alpha else 3), np.uint8), tile)
        frames = [f"{len(animation.durations)} frames"]
        return UpscaleResult(
            source=animation.path,
            destination=destination,
            source_size=animation.size,
            size=(width, height),
            tiles=tiling.count,
            seconds=time.perf_counter() - started,
            notes=(*frames, *notes, *self._scale_notes(scale), *self._tiling_notes(tiling)),
        )

    def _scale(self, scale: float | None) -> float:
        scale = self.scale if scale is None else scale
        # Written so that NaN fails too.
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not 0 < scale <= MAX_SCALE:
            raise ScaleError(f"the scale must be a number above 0 and at most {MAX_SCALE}, found {scale!r}")
        return float(scale)

    def _scale_notes(self, scale: float) -> list[str]:
        return [] if scale == self.scale else [f"the network enlarges {self.scale} times; resized to {scale:g} times"]

    def _tiling_notes(self, tiling: Tiling) -> list[str]:
        if not tiling.blended:
            return []
        reason = getattr(self.model, "unbounded", "") or "the network sees the whole picture"
        return [f"{reason}: the {tiling.count} tiles are blended and differ from an untiled run"]

    def _plan(self, pixels: np.ndarray, tile: int | None, encoder_bytes: int = 0) -> Tiling:
        height, width, channels = pixels.shape
        radius = self.receptive_radius
        if radius is not None and channels in (2, 4):
            radius = max(radius, NEIGHBOURHOOD)
        if tile is not None:
            _check_whole("tile", tile, 0)
            return plan_tiles(height, width, tile=tile, radius=radius)
        free = available_memory()
        budget = MEMORY if free is None else min(MEMORY, free // 2)
        budget = max(_LEAST_TILE_MEMORY, budget - pixels.nbytes - 2 * _BAND_MEMORY - encoder_bytes)
        row_bytes = width * self.scale**2 * channels * pixels.dtype.itemsize
        return plan_for_memory(
            height,
            width,
            radius=radius,
            pixel_budget=self._tile_memory.pixels_within(budget, columns=width),
            row_budget=_BAND_MEMORY // row_bytes,
        )

    def _bands(
        self, pixels: np.ndarray, size: tuple[int, int], dtype, tiling: Tiling, progress: Progress | None
    ) -> Iterator[np.ndarray]:
        """The enlarged picture from the top in bands of `dtype`, resized to `size` = (H, W) where it differs."""
        height, width, channels = pixels.shape
        if channels in (2, 4):
            pixels = fill_transparent(pixels)
        tiles_done = 0

        def render(top: int, bottom: int, left: int, right: int) -> np.ndarray:
            nonlocal tiles_done
            tile = self._render(to_unit(pixels[top:bottom, left:right]))
            if progress is not None:
                # Tiles differ a little in size; equal shares that add up to the picture are all that a bar needs.
                before = height * width * tiles_done // tiling.count
                tiles_done += 1
                progress(height * width * tiles_done // tiling.count - before)
            return tile

        own = (height * self.scale, width * self.scale)
        if size == own:
            yield from render_bands(
                render,
                tiling,
                scale=self.scale,
                channels=channels,
                finish=lambda band: from_unit(band, dtype),
                dtype=dtype,
            )
            return
        bands = render_bands(
            render, tiling, scale=self.scale, channels=channels, finish=lambda band: band, dtype=np.float32
        )
        for band in resample_bands(bands, source=own, target=size):
            yield from_unit(band, dtype)

    def _render(self, window: np.ndarray) -> np.ndarray:
        """Enlarge a float32 window (h, w, 1..4) as a whole: colour, then alpha."""
        if window.shape[2] in (1, 3):
            return self._run(window)
        colour, alpha = self._run(window[:, :, :-1]), np.ascontiguousarray(window[:, :, -1])
        if alpha.min() == alpha.max():
            large = np.full(colour.shape[:2], alpha[0, 0], np.float32)
        else:
            large = clamp_alpha(self._run(alpha[:, :, None])[:, :, 0], alpha, self.scale)
        return np.concatenate([colour, large[:, :, None]], axis=2)

    def _run(self, window: np.ndarray) -> np.ndarray:
        """Fit the picture's channels (1 or 3) to the network's: grey as three equal ones, colour one by one."""
        wanted = self.model.num_in_ch
        if window.shape[2] == wanted:
            return self.engine.run(np.ascontiguousarray(window))
        if wanted == 1:
            planes = [self.engine.run(np.ascontiguousarray(window[:, :, c : c + 1])) for c in range(window.shape[2])]
            return np.concatenate(planes, axis=2)
        return self.engine.run(window.repeat(wanted, axis=2)).mean(axis=2, keepdims=True)


def _check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    fits = isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least
    if not fits or (most is not None and int(value) > most):
        limits = f"{least} to {most}" if most is not None else f"at least {least}"
        raise SettingError(f"{name} must be a whole number, {limits}, found {value!r}")


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Integer pixels as float32 in [0, 1]; the data type alone tells the range. float32 is returned as it is."""
    if pixels.dtype == np.float32:
        return pixels
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def from_unit(values: np.ndarray, dtype) -> np.ndarray:
    """Float32 values clipped to [0, 1] as `dtype`: float32, or an integer type over its full range, rounded."""
    values = np.clip(values, 0, 1)
    if dtype == np.float32:
        return values
    values *= np.float32(np.iinfo(dtype).max)  # in place: a band of a large photo is some hundred megabytes
    return np.rint(values, out=values).astype(dtype)
