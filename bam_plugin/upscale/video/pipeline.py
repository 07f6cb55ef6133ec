"""`upscale_video`: decoding, network and encoding run side by side, each in a thread of its own.

A few frames wait between the stages, so memory does not depend on the length of the clip. The encoded pieces are put
into the result at the end (pieces.py, remux.py); its name appears when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import av

from bam_plugin import __version__
from bam_plugin.files import atomic_path
from bam_plugin.upscale.targets import refuse_same_file, target_size
from bam_plugin.upscale.video.clip import ClipFacts, TimedFrame, open_clip, read_facts, read_frames, video_stream
from bam_plugin.upscale.video.colour import to_rgb
from bam_plugin.upscale.video.containers import container_format
from bam_plugin.upscale.video.encoding import DEFAULT_CODEC, plan_encoding
from bam_plugin.upscale.video.pieces import PieceStore, TimedPicture
from bam_plugin.upscale.video.remux import check_container, write_result
from bam_plugin.upscale.video.unchanged import FrameUpscaler

_WAITING = 3  # frames between two stages

Item = TypeVar("Item")
VideoProgress = Callable[[int, int], None]
"""Called after each frame with the number of frames that are done and of all (0 where that is not known)."""


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """What became of a clip: sizes (width, height) in pixels, time in seconds, notes for a person."""

    source: Path
    destination: Path
    source_size: tuple[int, int]
    size: tuple[int, int]
    frames: int
    """Frames of the result; `resumed` of them were there from an earlier run."""
    resumed: int
    repeated: int
    """Frames that could not be decoded, in whose place another one stands."""
    computed: float
    """Share of the pixels that were computed; the others did not change."""
    seconds: float
    notes: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Frames a second of this run."""
        return (self.frames - self.resumed) / self.seconds

    def facts(self) -> dict[str, object]:
        """Everything but the paths, as JSON has it."""
        return {
            "source_size": list(self.source_size),
            "size": list(self.size),
            "frames": self.frames,
            "resumed": self.resumed,
            "repeated": self.repeated,
            "computed": round(self.computed, 4),
            "seconds": round(self.seconds, 3),
            "fps": round(self.rate, 2),
            "notes": list(self.notes),
        }

    def line(self) -> str:
        """What became of the clip, for a person, with a line for each note."""
        sizes = " -> ".join(f"{width}x{height}" for width, height in (self.source_size, self.size))
        line = f"{self.source} -> {self.destination}  {sizes}  {self.frames} frames, {self.rate:.1f} fps\n"
        return line + "".join(f"    note: {note}\n" for note in self.notes)


def upscale_video(
    upscaler: Any,
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    scale: float | None = None,
    codec: str = DEFAULT_CODEC,
    crf: int | None = None,
    preset: str | None = None,
    tile: int | None = None,
    strict: bool = False,
    resume: bool = False,
    progress: VideoProgress = lambda done, total: None,
) -> VideoResult:
    """Upscale each frame of a clip by an `Upscaler`; keep its times, all other streams, chapters, metadata and tags.

    `codec`, `crf` and `preset` are FFmpeg's names of the encoder, its quality and its speed. A frame that cannot be
    decoded is replaced by the last good one and noted; with `strict` it raises DamagedFrameError. A run that was killed
    leaves its finished pieces in a hidden folder beside `destination`; with `resume` the work goes on behind them.
    Raises VideoError and its kinds before any work starts where source, encoder or container do not fit.
    """
    started = time.perf_counter()
    source, destination = Path(source), Path(destination)
    refuse_same_file(source, destination)
    facts = read_facts(source)
    factor = float(upscaler.scale) if scale is None else scale
    size = target_size((facts.height, facts.width), factor)
    format = container_format(destination)
    encoding = plan_encoding(facts, size=size, codec=codec, crf=crf, preset=preset)
    left_out = check_container(source, destination, encoding)
    notes = [f"left out stream {index}, data that {format} cannot hold" for index in sorted(left_out)]
    notes += _notes(facts, encoding.padding, encoding.pixel_format)
    status = source.stat()
    fingerprint = {
        "source": [str(source.resolve()), status.st_size, status.st_mtime_ns],
        "network": [upscaler.model.sha256, upscaler.precision, factor],
        "encoding": {key: str(value) for key, value in asdict(encoding).items()},
        "versions": [__version__, av.__version__],
    }
    destination.parent.mkdir(parents=True, exist_ok=True)
    frames = FrameUpscaler(upscaler=upscaler, scale=None if factor == upscaler.scale else factor, tile=tile)
    with PieceStore(destination, fingerprint=fingerprint, resume=resume) as store, open_clip(source) as container:
        resumed = store.frames
        stream = video_stream(container, source)
        decoded = _ascending(read_frames(container, stream, strict=strict, report=notes.append), notes)
        counted = _Counted(decoded)
        with _Stage(_skip(counted, resumed)) as waiting, _Stage(_enlarged(waiting, frames, facts)) as enlarged:
            for done in store.write(enlarged, encoding):
                progress(done, max(done, facts.frames))
        with atomic_path(destination) as temporary:
            write_result(
                temporary,
                format=format,
                source=source,
                facts=facts,
                pieces=store.pieces,
                left_out=left_out,
            )
        total = store.frames
        store.remove()
    return VideoResult(
        source=source,
        destination=destination,
        source_size=(facts.width, facts.height),
        size=(encoding.width, encoding.height),
        frames=total,
        resumed=resumed,
        repeated=counted.repeated,
        computed=frames.computed_pixels / max(1, frames.total_pixels),
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _enlarged(frames: Iterator[TimedFrame], upscaler: FrameUpscaler, facts: ClipFacts) -> Iterator[TimedPicture]:
    for frame in frames:
        pixels = upscaler.upscale(to_rgb(frame.picture, facts.tags))
        yield TimedPicture(pixels=pixels, pts=frame.pts, duration=frame.duration)


def _ascending(frames: Iterator[TimedFrame], notes: list[str]) -> Iterator[TimedFrame]:
    """The frames with times that ascend: encoders refuse others, which some damaged files hold."""
    last: int | None = None
    moved = 0
    for frame in frames:
        pts = frame.pts if last is None else max(frame.pts, last + 1)
        moved += pts != frame.pts
        last = pts
        yield TimedFrame(picture=frame.picture, pts=pts, duration=frame.duration, repeated=frame.repeated)
    if moved:
        notes.append(f"{moved} frames had times that do not ascend; they were moved")


def _skip(frames: Iterable[TimedFrame], number: int) -> Iterator[TimedFrame]:
    """The frames behind the first `number`, which an earlier run has done: decoded again, so that none is mistaken."""
    for index, frame in enumerate(frames):
        if index >= number:
            yield frame


def _notes(facts: ClipFacts, padding: tuple[int, int], pixel_format: str) -> list[str]:
    notes = []
    if facts.interlaced:
        notes.append("the clip is interlaced; its frames are enlarged as they are, deinterlace it first")
    if any(padding):
        notes.append(f"the encoder takes even sizes only: {padding[1]} columns and {padding[0]} rows are repeated")
    if pixel_format != facts.pixel_format.replace("yuvj", "yuv"):
        notes.append(f"encoded as {pixel_format}; the clip has {facts.pixel_format}")
    return notes


class _Counted:
    """An iterator of frames that counts the repeated ones."""

    def __init__(self, frames: Iterator[TimedFrame]):
        self._frames = frames
        self.repeated = 0

    def __iter__(self) -> Iterator[TimedFrame]:
        for frame in self._frames:
            self.repeated += frame.repeated
            yield frame


class _Stage(Iterator[Item]):
    """Runs an iterator in a thread of its own, a few items ahead of its reader. Use it in a `with` block."""

    def __init__(self, items: Iterable[Item]):
        self._items = items
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(maxsize=_WAITING)
        self._ended: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Stage[Item]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A stage that reads this one has ended before: blocks close from the inside out.
        self._stopped.set()
        self._thread.join()

    def __next__(self) -> Item:
        item = None
        if self._ended is None:
            item, self._ended = self._queue.get()
        if self._ended is not None:
            raise self._ended
        assert item is not None
        return item

    def _run(self) -> None:
        end: BaseException = StopIteration()
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
        except BaseException as error:  # handed to the reader
            end = error
        self._put((None, end))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        """Wait for room; False where the reader has left."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(entry, timeout=0.1)
                return True
        return False
