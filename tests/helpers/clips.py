"""Clips made with FFmpeg's own libraries (PyAV), to the frame and to the tag where that matters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from bam_plugin.upscale.video.colour import ColourTags, from_rgb

TIME_BASE = Fraction(1, 90000)
_TEXTS = {
    ".srt": "1\n00:00:00,100 --> 00:00:00,250\na line of text\n",
    ".ass": "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
    "Dialogue: 0,0:00:00.10,0:00:00.25,Default,a line of text\n",
}
BT709 = ColourTags(matrix=1, primaries=1, transfer=1, range=1)
BT601_FULL = ColourTags(matrix=6, primaries=6, transfer=6, range=2)


def moving_picture(number: int, *, height: int = 36, width: int = 48, deep: bool = False) -> np.ndarray:
    """Frame `number` of smooth moving waves, uint8 or uint16 RGB (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    waves = (np.sin((x + 3 * number) / 9), np.cos((y + 2 * number) / 7), np.sin((x + y - number) / 11))
    unit = np.stack([0.5 + 0.4 * wave for wave in waves], axis=2)
    return np.rint(unit * (65535 if deep else 255)).astype(np.uint16 if deep else np.uint8)


def variable_times(frames: int) -> list[int]:
    """Times of a clip of changing frame rate, in units of TIME_BASE."""
    return np.cumsum([0, *(3000 + 700 * (index % 3) for index in range(frames - 1))]).tolist()


def write_clip(
    path: Path,
    *,
    frames: int = 12,
    size: tuple[int, int] = (36, 48),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    tags: ColourTags = BT709,
    options: dict[str, str] | None = None,
    rotation: int | None = None,
    aspect: Fraction | None = None,
    audio_tracks: int = 0,
    subtitles: str | None = None,
    attachment: bytes | None = None,
    still: bool = False,
    gop: int = 6,
) -> Path:
    """Write a clip of `frames` frames at `variable_times`, with whatever other streams are asked for."""
    deep = max(component.bits for component in av.VideoFormat(pixel_format).components) > 8
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "waves"
        video = container.add_stream(codec, rate=30, options=options or {})
        video.height, video.width = size
        video.pix_fmt = pixel_format
        video.codec_context.time_base = video.time_base = TIME_BASE
        video.codec_context.gop_size = gop
        if pixel_format.startswith("yuv"):
            video.codec_context.colorspace, video.codec_context.color_range = tags.matrix, tags.range
        video.codec_context.color_primaries, video.codec_context.color_trc = tags.primaries, tags.transfer
        video.metadata["language"] = "eng"
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
            video.sample_aspect_ratio = aspect
        if rotation is not None:
            video.set_display_rotation(rotation)
        sounds = [container.add_stream("aac", rate=16000, layout="mono") for _ in range(audio_tracks)]
        for number, sound in enumerate(sounds):
            sound.metadata["language"] = ("deu", "fra")[number % 2]
        text = _add_subtitles(container, path.with_name("text." + subtitles)) if subtitles else None
        if attachment is not None:
            container.add_attachment("letter.ttf", "application/x-truetype-font", attachment)
        container.set_chapters(
            [
                {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "begin"}},
                {"id": 2, "start": 200, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "end"}},
            ]
        )
        container.start_encoding()
        if text is not None:
            container.mux(text)
        for number, pts in enumerate(variable_times(frames)):
            pixels = moving_picture(0 if still else number, height=size[0], width=size[1], deep=deep)
            frame = from_rgb(pixels, pixel_format, tags)
            frame.pts, frame.time_base = pts, TIME_BASE
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for number, sound in enumerate(sounds):
            for packet in _tone(sound, 200 * (number + 1)):
                container.mux(packet)
    return path


def _add_subtitles(container: av.container.OutputContainer, path: Path) -> list[av.Packet]:
    """Add a stream of text, and return its packets."""
    path.write_text(_TEXTS[path.suffix], encoding="utf-8")
    with av.open(str(path)) as source:
        copy = container.add_stream_from_template(source.streams[0], opaque=True)
        packets = [packet for packet in source.demux() if packet.size]
    path.unlink()
    for packet in packets:
        packet.stream = copy
    return packets


def _tone(stream: Any, hertz: int) -> Iterator[av.Packet]:
    for block in range(8):
        samples = np.sin(2 * np.pi * hertz * (np.arange(1024) + 1024 * block) / 16000, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(0.3 * samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 1024 * block
        yield from stream.encode(frame)
    yield from stream.encode(None)


def damage(path: Path, numbers: Sequence[int], target: Path) -> Path:
    """A copy of a clip in which the packets of these numbers (in the order of the file) hold noise."""
    generator = np.random.default_rng(3)
    with av.open(str(path)) as source, av.open(str(target), "w") as result:
        stream = source.streams.video[0]
        copy = result.add_stream_from_template(stream, opaque=True)
        for index, packet in enumerate(each for each in source.demux(stream) if each.size):
            if index in numbers:
                noise = av.Packet(generator.integers(0, 256, packet.size, dtype=np.uint8).tobytes())
                noise.pts, noise.dts, noise.time_base = packet.pts, packet.dts, packet.time_base
                noise.duration, noise.is_keyframe = packet.duration, packet.is_keyframe
                packet = noise
            packet.stream = copy
            result.mux(packet)
    return target


def frames_of(path: Path) -> list[av.VideoFrame]:
    """All frames of a clip, decoded."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def times_of(path: Path) -> list[Fraction]:
    """The times of all frames in seconds, exact."""
    return [frame.pts * frame.time_base for frame in frames_of(path)]


def packets_of(path: Path, index: int) -> list[tuple[Fraction, str]]:
    """(time in seconds, digest of the content) of each packet of a stream."""
    with av.open(str(path)) as container:
        return [
            (packet.pts * packet.time_base, hashlib.sha256(bytes(packet)).hexdigest())
            for packet in container.demux(container.streams[index])
            if packet.size
        ]
