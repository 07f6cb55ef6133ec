"""How the frames of a result are encoded: encoder, pixel format, quality and speed, checked before any work starts."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError
from av.video.format import VideoFormat
from av.video.stream import VideoStream

from bam_plugin.upscale.video.clip import ClipFacts
from bam_plugin.upscale.video.colour import ColourTags, choose_format, from_rgb
from bam_plugin.upscale.video.errors import UnknownEncoderError, VideoError

DEFAULT_CODEC = "libx264"
COMMON_CODECS = ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1", "prores_ks", "mpeg4", "mjpeg")
_DEFAULT_CRF = {"libx264": 18, "libx265": 20, "libsvtav1": 24, "libvpx-vp9": 24}
# What an encoder needs besides: constant quality of VP9 asks for a bit rate of 0, and x265 writes a log of its own.
_EXTRA = {
    "libx265": {"x265-params": "log-level=error"},
    "libvpx-vp9": {"b": "0", "row-mt": "1"},
}

_MOST_RATE = 65535  # of MPEG-4
_LEAST_X265 = 64  # it writes beyond its buffers in smaller pictures


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Everything that an encoder is opened with."""

    codec: str
    options: tuple[tuple[str, str], ...]
    width: int
    height: int
    pixel_format: str
    rate: Fraction
    """Frames a second, as the encoder counts them: it gets numbers of frames for times, which every encoder takes."""
    sample_aspect_ratio: Fraction | None
    tags: ColourTags
    padding: tuple[int, int]
    """Rows and columns that are repeated at the lower and right border, where the encoder takes even sizes only."""

    def configure(self, stream: VideoStream) -> None:
        """Set up a stream that `container.add_stream(encoding.codec)` made."""
        context = stream.codec_context
        context.width, context.height = self.width, self.height
        context.pix_fmt = self.pixel_format
        context.time_base = stream.time_base = 1 / self.rate
        context.framerate = self.rate
        if self.sample_aspect_ratio is not None:
            context.sample_aspect_ratio = self.sample_aspect_ratio
        if not VideoFormat(self.pixel_format).is_rgb:
            context.colorspace, context.color_range = self.tags.matrix, self.tags.range
        context.color_primaries, context.color_trc = self.tags.primaries, self.tags.transfer
        context.options = dict(self.options)

    def frame(self, pixels: np.ndarray, *, number: int) -> av.VideoFrame:
        """Frame `number` of what is encoded, from an enlarged picture (H, W, 3 or 4)."""
        if any(self.padding):
            rows, columns = self.padding
            pixels = np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="edge")
        frame = from_rgb(np.ascontiguousarray(pixels), self.pixel_format, self.tags)
        frame.pts, frame.time_base, frame.duration = number, 1 / self.rate, 1
        return frame


def find_codec(name: str) -> Codec:
    """The encoder of that name. Raises UnknownEncoderError, which lists those that are there."""
    try:
        codec = Codec(name, "w")
    except UnknownCodecError as error:
        raise UnknownEncoderError(
            f"there is no encoder {name!r} in the installed FFmpeg libraries; they have: {', '.join(_available())}"
        ) from error
    if codec.type != "video":
        raise UnknownEncoderError(f"{name!r} encodes {codec.type}, no video; choose one of: {', '.join(_available())}")
    return codec


def plan_encoding(
    facts: ClipFacts, *, size: tuple[int, int], codec: str = DEFAULT_CODEC, crf: int | None, preset: str | None
) -> Encoding:
    """Settings for a result of `size` = (H, W). Raises a VideoError where the encoder does not take them.

    `crf` is the encoder's own scale of constant quality (smaller is better), `preset` its own name of a speed.
    """
    os.environ.setdefault("SVT_LOG", "1")  # errors only: the library of libsvtav1 reads it
    encoder = find_codec(codec)
    options = dict(_EXTRA.get(codec, {}))
    wanted = {"crf": _DEFAULT_CRF.get(codec) if crf is None else crf, "preset": preset}
    known = {option.name for option in av.CodecContext.create(codec, "w").supported_options.private}
    for name, value in wanted.items():
        if value is None:
            continue
        if name not in known:
            raise VideoError(f"the encoder {codec} has no setting {name!r}; leave --{name} out")
        options[name] = str(value)
    encoding = Encoding(
        codec=codec,
        options=tuple(sorted(options.items())),
        width=size[1],
        height=size[0],
        pixel_format=choose_format(VideoFormat(facts.pixel_format), encoder),
        rate=min(facts.rate.limit_denominator(1001), Fraction(_MOST_RATE)),
        sample_aspect_ratio=facts.sample_aspect_ratio,
        tags=facts.tags,
        padding=(0, 0),
    )
    if codec == "libx265" and min(size) < _LEAST_X265:
        raise VideoError(f"libx265 needs {_LEAST_X265} rows and columns, the result has {size[1]}x{size[0]}")
    problem = _why_not(encoding)
    odd = (size[0] % 2, size[1] % 2)
    if problem is not None and any(odd):
        encoding = replace(encoding, height=size[0] + odd[0], width=size[1] + odd[1], padding=odd)
        problem = _why_not(encoding)
    if problem is not None:
        settings = ", ".join(f"{name} {value}" for name, value in encoding.options)
        raise VideoError(
            f"the encoder {codec} does not take {encoding.width}x{encoding.height} {encoding.pixel_format}"
            f"{' with ' + settings if settings else ''} ({problem})"
        )
    return encoding


def _why_not(encoding: Encoding) -> str | None:
    """What the encoder says to these settings; None where it takes them."""
    try:
        with av.open(io.BytesIO(), "w", format="nut") as container:
            stream = container.add_stream(encoding.codec, rate=encoding.rate)
            encoding.configure(stream)
            pixels = np.zeros((encoding.height, encoding.width, 3), np.uint8)
            stream.encode(encoding.frame(pixels, number=0))
            stream.encode(None)
    except (FFmpegError, ValueError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _available() -> list[str]:
    """The common encoders that are there."""
    found = []
    for name in COMMON_CODECS:
        try:
            Codec(name, "w")
        except UnknownCodecError:
            continue
        found.append(name)
    return found
