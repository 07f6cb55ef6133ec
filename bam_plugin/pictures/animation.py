"""Animations (GIF, APNG, WebP): every frame as a whole picture with its duration, read and written one at a time.

A frame is the whole picture that a viewer shows: a partial frame lies over those before it, as its format says. A GIF
has up to 256 colours a frame, and its pixels are clear or opaque. A result in GIF is reduced to that.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bam_plugin.pictures.apng_stream import ApngStream
from bam_plugin.pictures.decode import has_alpha
from bam_plugin.pictures.errors import DamagedPictureError, PictureTooLargeError, PictureWriteError
from bam_plugin.pictures.formats import PictureFormat, format_of
from bam_plugin.pictures.read import MAX_PIXELS, decoding, frame_count, opened, pixel_limit
from bam_plugin.pictures.write import check_size, encoder_of, with_palette

DEFAULT_DURATION = 100.0
"""Milliseconds of a frame whose file says 0 or nothing, as in browsers."""

_MOST_FRAMES = 10  # times the limit of one picture that all frames together may have


@dataclass(frozen=True)
class Animation:
    """A file of several frames. Only `alpha` is decoded so far."""

    path: Path
    format: PictureFormat
    size: tuple[int, int]
    """Width and height of the canvas in pixels."""
    durations: tuple[float, ...]
    """Milliseconds of each frame."""
    plays: int
    """Number of runs, 0 for ever."""
    alpha: bool
    """Whether any pixel of any frame is not opaque."""
    max_pixels: int
    icc_profile: bytes | None = None

    def frames(self) -> Iterator[np.ndarray]:
        """The frames as a viewer shows them: uint8 (H, W, 3), or (H, W, 4) with `alpha`. Raises `PictureError`."""
        with opened(self.path, max_pixels=self.max_pixels) as image:
            for number in _numbers(image):
                with decoding(self.path), pixel_limit(self.max_pixels):
                    image.seek(number)
                    if image.size != self.size:
                        raise DamagedPictureError(f"{self.path}: its frame {number + 1} is larger than the first one")
                    pixels = np.asarray(image.convert("RGBA" if self.alpha else "RGB"))
                yield pixels


def read_animation(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Animation | None:
    """Look through a file once. None if it holds one picture, or pages instead of frames. Raises `PictureError`."""
    with opened(path, max_pixels=max_pixels) as image, decoding(path):
        if frame_count(image) < 2:
            return None
        size, numbers = image.size, _numbers(image)
        if len(numbers) * size[0] * size[1] > _MOST_FRAMES * max_pixels:
            raise PictureTooLargeError(
                f"{path}: {len(numbers)} frames of {size[0]} x {size[1]} pixels exceed {_MOST_FRAMES} times the limit "
                f"of {max_pixels / 1e6:g} megapixels; raise the limit (--max-megapixels, max_pixels=) if you trust it"
            )
        durations, alpha = [], False
        for number in numbers:
            with pixel_limit(max_pixels):  # a later frame may be larger than the canvas
                image.seek(number)
                image.load()
            durations.append(float(image.info.get("duration") or DEFAULT_DURATION))
            if not alpha and has_alpha(image):
                alpha = bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)
        profile = image.info.get("icc_profile")
        return Animation(
            path=Path(path),
            format=format_of(image.format),
            size=size,
            durations=tuple(durations),
            plays=_plays(image),
            alpha=alpha,
            max_pixels=max_pixels,
            icc_profile=profile if isinstance(profile, bytes) else None,
        )


def check_animation(animation: Animation, format: PictureFormat, *, width: int, height: int) -> list[str]:
    """Notes on what `format` cannot hold of the animation enlarged to `width` x `height`.

    Raises `PictureWriteError` if it cannot hold the animation at all.
    """
    encoder = encoder_of(format)
    check_size(format, width=width, height=height)
    total = len(animation.durations) * width * height
    if encoder.most_frame_pixels is not None and total > encoder.most_frame_pixels:
        raise PictureWriteError(
            f"{format.name} is written up to {encoder.most_frame_pixels / 1e6:g} megapixels of all frames together, "
            f"the result has {total / 1e6:.0f}; write a png, which is streamed"
        )
    notes = ["gif holds 256 colours a frame, and no half transparent parts"] if encoder.palette else []
    if animation.icc_profile and encoder.palette:
        notes.append(f"{format.name} holds no ICC profile: it was left out")
    return notes


def write_animation(
    path: Path, frames: Iterator[np.ndarray], animation: Animation, format: PictureFormat, *, quality: int
) -> None:
    """Write the `frames` of `animation`, enlarged to one size, uint8 (H, W, 3 or 4), to the file `path`."""
    encoder, first = encoder_of(format), next(frames)
    if encoder.pillow is None:
        _write_apng(path, first, frames, animation)
        return
    image = _FrameSequence(first, frames, len(animation.durations), palette=encoder.palette)
    options: dict[str, Any] = {"save_all": True, "duration": [round(each) for each in animation.durations]}
    if encoder.palette:
        # Each frame lies on a clear canvas. GIF counts repetitions; without the number it runs once.
        options |= {"disposal": 2, "optimize": False}
        if animation.plays != 1:
            options["loop"] = max(0, animation.plays - 1)
    else:
        options |= {"loop": animation.plays, "quality": quality, "icc_profile": animation.icc_profile}
    content = io.BytesIO()
    image.save(content, encoder.pillow, **options)
    path.write_bytes(content.getbuffer())


def _write_apng(path: Path, first: np.ndarray, others: Iterator[np.ndarray], animation: Animation) -> None:
    height, width, channels = first.shape
    with path.open("wb") as file:
        stream = ApngStream(
            stream=file,
            width=width,
            height=height,
            channels=channels,
            dtype=np.uint8,
            icc_profile=animation.icc_profile,
            frames=len(animation.durations),
            plays=animation.plays,
        )
        stream.add(first, milliseconds=animation.durations[0])
        for frame, duration in zip(others, animation.durations[1:], strict=True):
            stream.add(frame, milliseconds=duration)
        stream.close()


class _FrameSequence(Image.Image):
    """A Pillow image that makes its frames on demand, one after the other."""

    def __init__(self, first: np.ndarray, others: Iterator[np.ndarray], count: int, *, palette: bool):
        super().__init__()
        self.n_frames, self.is_animated = count, count > 1
        self._others, self._palette, self._number = others, palette, 0
        self._show(first)

    def seek(self, frame: int) -> None:
        if frame >= self.n_frames:
            raise EOFError
        while self._number < frame:
            self._show(next(self._others))
            self._number += 1

    def tell(self) -> int:
        return self._number

    def _show(self, pixels: np.ndarray) -> None:
        image = with_palette(pixels) if self._palette else Image.fromarray(pixels)
        self.im, self._mode, self._size = image.im, image.mode, image.size
        self.palette, self.info = image.palette, image.info


def _numbers(image: Any) -> range:
    """Numbers of the frames. The first picture of an APNG may be a stand-in that is not shown."""
    return range(1 if image.info.get("default_image") else 0, image.n_frames)


def _plays(image: Any) -> int:
    """How often the animation runs by its header: a GIF counts repetitions, the others runs."""
    loop = image.info.get("loop")
    if image.format != "GIF":
        return int(loop or 0)
    return 1 if loop is None else 0 if loop == 0 else int(loop) + 1
