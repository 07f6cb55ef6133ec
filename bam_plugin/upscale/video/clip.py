"""What a clip holds, and its frames in the order of their times: as many as were stored, damaged ones replaced.

A frame that cannot be decoded is reported with its time, and the last good one takes its place (the first good one,
where the clip begins with damage). So no time of the clip is left without a picture.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av import Packet, VideoFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.stream import VideoStream

from bam_plugin.upscale.video.colour import ColourTags, tags_of
from bam_plugin.upscale.video.errors import DamagedFrameError, NoVideoError, VideoError


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What the first frame and the header of a clip tell."""

    width: int
    height: int
    pixel_format: str
    frames: int
    """Frames by the header, or an estimate from duration and rate; 0 where neither is known."""
    rate: Fraction
    time_base: Fraction
    """Unit of all times, in seconds."""
    sample_aspect_ratio: Fraction | None
    display_matrix: tuple[int, ...] | None
    """Nine numbers that rotate and mirror the picture for display, as FFmpeg keeps them."""
    interlaced: bool
    tags: ColourTags


@dataclass(frozen=True, kw_only=True)
class TimedFrame:
    """A frame to upscale: its picture, and its time and duration in units of the clip's time base."""

    picture: VideoFrame
    pts: int
    duration: int
    repeated: bool = False
    """Whether another frame's picture stands in for a damaged one."""


def open_clip(path: str | os.PathLike) -> InputContainer:
    """Open a clip for reading. Raises VideoError where FFmpeg does not know it, OSError where there is no file."""
    try:
        return av.open(os.fspath(path))
    except FileNotFoundError:
        raise
    except FFmpegError as error:
        raise VideoError(f"{path}: FFmpeg cannot read it as a clip ({error.strerror or error})") from error


def video_stream(container: InputContainer, path: str | os.PathLike) -> VideoStream:
    """The stream of moving pictures: the one marked as default, else the largest; cover pictures do not count."""
    streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
    streams = [each for each in streams if each.codec_context.width]
    if not streams:
        raise NoVideoError(f"{path}: holds no moving pictures; upscale pictures without the options of clips")
    return max(streams, key=lambda each: (bool(each.disposition & Disposition.default), each.width * each.height))


def read_facts(path: str | os.PathLike) -> ClipFacts:
    """Facts of the clip at `path`; decodes it up to its first good frame. Raises VideoError where there is none."""
    with open_clip(path) as container:
        stream = video_stream(container, path)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        assert stream.time_base is not None  # every stream that was demuxed has one
        for packet in container.demux(stream):
            for frame in _decoded(packet, lambda error: None):
                return ClipFacts(
                    width=frame.width,
                    height=frame.height,
                    pixel_format=frame.format.name,
                    frames=stream.frames or _estimated_frames(container, stream, rate),
                    rate=rate,
                    time_base=stream.time_base,
                    sample_aspect_ratio=stream.sample_aspect_ratio,
                    display_matrix=_display_matrix(frame),
                    interlaced=frame.interlaced_frame,
                    tags=tags_of(frame),
                )
    raise VideoError(f"{path}: none of its frames can be decoded")


def read_frames(
    container: InputContainer,
    stream: VideoStream,
    *,
    strict: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[TimedFrame]:
    """Decode the clip: one frame for each that is stored, ascending in time.

    `report` gets a line for each damaged frame. With `strict` the first one raises DamagedFrameError instead. Frames
    without a time (old AVI files) get the clip's rate.
    """
    # Frames of several threads would come late, and with them the errors: which packet was meant would be unknown.
    stream.thread_type = "SLICE"
    time_base = stream.time_base or Fraction(1, 25)
    step = max(1, round(1 / ((stream.average_rate or stream.guessed_rate or Fraction(25)) * time_base)))
    lost: list[int] = []
    last: VideoFrame | None = None
    expected = 0

    def note(pts: int, reason: str) -> None:
        line = f"{float(pts * time_base):.3f} s: {reason}"
        if strict:
            raise DamagedFrameError(f"{Path(container.name).name}, {line}; without --strict the last good one repeats")
        report(f"{line}; the last good frame is repeated")
        heapq.heappush(lost, pts)

    def repeats(before: int | None) -> Iterator[TimedFrame]:
        while lost and last is not None and (before is None or lost[0] < before):
            yield TimedFrame(picture=last, pts=heapq.heappop(lost), duration=step, repeated=True)

    for packet in container.demux(stream):
        when = packet.pts if packet.pts is not None else packet.dts

        when = expected if when is None else when
        for frame in _decoded(packet, lambda error, when=when: note(when, f"a frame cannot be decoded ({error})")):
            pts = expected if frame.pts is None else frame.pts
            if frame.is_corrupt:
                note(pts, "a frame is damaged")
                continue
            first = last is None
            last = frame if first else last
            yield from repeats(pts)
            last = frame
            duration = frame.duration or packet.duration or step
            expected = pts + duration
            yield TimedFrame(picture=frame, pts=pts, duration=duration)
    if last is None:
        raise VideoError(f"{container.name}: none of its frames can be decoded")
    yield from repeats(None)


def _decoded(packet: Packet, failed: Callable[[Exception], None]) -> Iterator[VideoFrame]:
    """The frames of a packet; a packet that FFmpeg refuses is handed to `failed`."""
    try:
        yield from packet.decode()
    except FFmpegError as error:
        # The last packet is empty and flushes the decoder: nothing of the clip is lost with it.
        if packet.size:
            failed(error)


def _estimated_frames(container: InputContainer, stream: VideoStream, rate: Fraction) -> int:
    if stream.duration and stream.time_base:
        return round(stream.duration * stream.time_base * rate)
    return round(Fraction(container.duration, av.time_base) * rate) if container.duration else 0


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    for data in frame.side_data:  # a mapping to its stub, a sequence in fact
        if data.type == SideDataType.DISPLAYMATRIX:  # type: ignore[attr-defined]
            content = bytes(data)  # type: ignore[arg-type]
            return tuple(int.from_bytes(content[i : i + 4], "little", signed=True) for i in range(0, 36, 4))
    return None
