"""The final file: the encoded pieces, and every other stream, chapter and tag of the source as they are.

Audio, subtitles, attachments and data are copied, not encoded again. A container that cannot hold one of them is
refused before any work starts; only data streams, which hold a camera's own notes, are left out with a note.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
from av import Packet
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.stream import Stream
from av.video.stream import VideoStream

from bam_plugin.upscale.video.clip import ClipFacts, open_clip, video_stream
from bam_plugin.upscale.video.containers import container_format
from bam_plugin.upscale.video.encoding import Encoding
from bam_plugin.upscale.video.errors import ContainerError
from bam_plugin.upscale.video.pieces import Piece

# What describes the source's own file, and not its content.
_OF_THE_FILE = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration"}


def check_container(source: Path, destination: Path, encoding: Encoding) -> set[int]:
    """Numbers of the data streams of `source` that the container of `destination` cannot hold.

    Raises ContainerError where it cannot hold a stream of another kind, or what the encoder makes.

    Writes the header of a result, with all streams, into memory.
    """
    format = container_format(destination)
    with open_clip(source) as container:
        moving = video_stream(container, source)
        if (problem := _why_not(format, encoding, [])) is not None:
            raise ContainerError(
                f"{destination}: a {format} file cannot hold {encoding.codec} ({problem}); choose another --codec, or "
                "name the result .mkv"
            )
        others = [each for each in container.streams if each.index != moving.index]
        refused = {each.index: _why_not(format, encoding, [each]) for each in others}
        serious = [each for each in others if refused[each.index] is not None and each.type != "data"]
        if serious:
            what = "; ".join(f"stream {each.index} ({_describe(each)}): {refused[each.index]}" for each in serious)
            raise ContainerError(f"{destination}: a {format} file cannot hold {what}. Name the result .mkv")
    return {index for index, problem in refused.items() if problem is not None}


def write_result(
    path: Path, *, format: str, source: Path, facts: ClipFacts, pieces: Sequence[Piece], left_out: set[int]
) -> None:
    """Write the final file at `path` from the pieces and the other streams of `source`."""
    with open_clip(source) as container, av.open(str(path), "w", format=format) as result:
        moving = video_stream(container, source)
        with av.open(str(pieces[0].path)) as first:
            picture = result.add_stream_from_template(first.streams.video[0], opaque=True)
        picture.time_base = facts.time_base
        _copy_facts(moving, picture)
        if facts.display_matrix is not None:
            picture.set_display_matrix(facts.display_matrix)
        if facts.sample_aspect_ratio is not None:
            picture.sample_aspect_ratio = facts.sample_aspect_ratio
        copies = {}
        for stream in container.streams:
            if stream.index != moving.index and stream.index not in left_out:
                copies[stream.index] = _add_copy(result, stream)
        result.metadata.update({key: value for key, value in container.metadata.items() if key not in _OF_THE_FILE})
        if chapters := container.chapters():
            result.set_chapters(chapters)
        ours, theirs = _pictures(pieces, picture, facts), _others(container, copies)
        for _, _, packet in heapq.merge(ours, theirs):
            result.mux(packet)


def _add_copy(result: OutputContainer, stream: Stream) -> Stream | None:
    """A stream of the result that takes the packets of `stream`; None where there are none to take."""
    if stream.type == "attachment":
        attachment: Any = stream
        copy = result.add_attachment(
            attachment.name or "attachment", attachment.mimetype or "application/octet-stream", attachment.data
        )
        _copy_facts(stream, copy)
        return None
    copy = result.add_stream_from_template(stream, opaque=True)
    copy.time_base = stream.time_base
    _copy_facts(stream, copy)
    return copy


def _copy_facts(stream: Stream, copy: Stream) -> None:
    copy.metadata.update({key: value for key, value in stream.metadata.items() if key.lower() not in _OF_THE_FILE})
    copy.disposition = stream.disposition


def _pictures(pieces: Sequence[Piece], stream: VideoStream, facts: ClipFacts) -> Iterator[tuple[float, int, Packet]]:
    """The packets of all pieces with decoding times that ascend over their borders, with their time in seconds.

    Packet i is decoded at the time of frame i - d, d being the largest delay of a piece: the usual rule of encoders,
    here over the whole clip, since each piece was encoded by itself.
    """
    delay = max(piece.delay for piece in pieces)
    times = (pts for piece in pieces for pts in sorted(piece.times))
    first = min(pieces[0].times)
    step = max(1, round(1 / (facts.rate * facts.time_base)))
    early = [first - (delay - index) * step for index in range(delay)]
    number = 0
    for piece in pieces:
        with av.open(str(piece.path)) as opened:
            packets = (packet for packet in opened.demux(video=0) if packet.size)
            for packet, pts, duration in zip(packets, piece.times, piece.durations, strict=True):
                dts = early[number] if number < delay else next(times)
                packet.pts, packet.dts, packet.duration = pts, dts, duration
                packet.stream = stream
                packet.time_base = facts.time_base
                number += 1
                yield float(dts * facts.time_base), 0, packet


def _others(container: InputContainer, copies: dict[int, Stream | None]) -> Iterator[tuple[float, int, Packet]]:
    """The packets of the copied streams, with their time in seconds."""
    streams = [container.streams[index] for index, copy in copies.items() if copy is not None]
    if not streams:
        return
    last = 0.0
    for number, packet in enumerate(container.demux(streams)):
        if packet.size == 0 or (packet.dts is None and packet.pts is None):
            continue
        when = packet.dts if packet.dts is not None else packet.pts
        assert when is not None
        # Kept in the order of the file, where a stream's times may step back against another's.
        last = max(last, float(when * packet.time_base))
        packet.stream = copies[packet.stream.index]  # type: ignore[assignment]
        yield last, number + 1, packet


def _why_not(format: str, encoding: Encoding, streams: Sequence[Stream]) -> str | None:
    """What the container says to the encoded pictures beside copies of these streams; None where it takes them."""
    try:
        with av.open(io.BytesIO(), "w", format=format) as result:
            stream = result.add_stream(encoding.codec, rate=encoding.rate)
            encoding.configure(stream)
            for each in streams:
                _add_copy(result, each)
            result.start_encoding()
    except (FFmpegError, ValueError, TypeError, AttributeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _describe(stream: Stream) -> str:
    codec = getattr(stream, "codec_context", None)
    return f"{stream.type}, {codec.name}" if codec is not None else str(stream.type)
