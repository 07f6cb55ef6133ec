"""The encoded pieces of a result that is not finished: they survive a kill, so that the work can go on behind them.

The pieces lie in a hidden folder beside the result: NUMBER.mkv, and the exact times of its packets in NUMBER.json
(Matroska knows milliseconds only). A piece is a few seconds long, begins with a key frame, and appears when it is
complete. `fingerprint` says what the pieces were made from. Pieces of another source, network or setting are thrown
away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from bam_plugin.files import atomic_path
from bam_plugin.upscale.video.encoding import Encoding
from bam_plugin.upscale.video.errors import VideoError

try:
    import fcntl
except ImportError:  # Windows: two runs on one result are not told apart there
    fcntl = None

PIECE_FRAMES = 240
_PIECE_TIME_BASE = Fraction(1, 25)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece: its file, and times and durations of its packets in the order in which they are decoded."""

    path: Path
    times: tuple[int, ...]
    durations: tuple[int, ...]

    @property
    def delay(self) -> int:
        """By how many frames the order of decoding runs ahead of the order of the times."""
        rank = {pts: index for index, pts in enumerate(sorted(self.times))}
        return max(index - rank[pts] for index, pts in enumerate(self.times))


@dataclass(frozen=True, kw_only=True)
class TimedPicture:
    """An enlarged picture (H, W, C) with its time and duration in units of the time base."""

    pixels: np.ndarray
    pts: int
    duration: int


class PieceStore:
    """The folder of the pieces of one result. Use it in a `with` block, which keeps other runs away from it."""

    def __init__(self, destination: Path, *, fingerprint: object, resume: bool):
        """Pieces that are there are kept with `resume` where the fingerprint is theirs, else removed."""
        self.folder = destination.with_name(f".{destination.name}.bam-parts")
        self._fingerprint = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
        self._resume = resume
        self.pieces: list[Piece] = []

    def __enter__(self) -> PieceStore:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._lock.close()
                raise VideoError(f"{self.folder}: another run is making this result; wait for it or stop it") from error
        kept = self._read() if self._resume else []
        for path in self.folder.iterdir():
            if path.name not in {"lock", "made_from"} and path.stem not in {each.path.stem for each in kept}:
                path.unlink()
        (self.folder / "made_from").write_text(self._fingerprint)
        self.pieces = kept
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def frames(self) -> int:
        """Frames in all pieces."""
        return sum(len(piece.times) for piece in self.pieces)

    def remove(self) -> None:
        """Remove the folder: the result is complete, or its pieces are of no use."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, pictures: Iterable[TimedPicture], encoding: Encoding) -> Iterator[int]:
        """Encode pictures into further pieces; yields the number of frames done after each frame."""
        pictures = iter(pictures)
        for first in pictures:
            yield from self._write_one(first, pictures, encoding)

    def _write_one(self, first: TimedPicture, rest: Iterator[TimedPicture], encoding: Encoding) -> Iterator[int]:
        path = self.folder / f"{len(self.pieces):06d}.mkv"
        done, shown, stored = self.frames, [], []

        def store(packets: list[av.Packet]) -> None:
            for packet in packets:
                stored.append(packet.pts)
                packet.pts = packet.dts = len(stored)  # the exact times are beside the piece
                packet.duration, packet.time_base = 1, _PIECE_TIME_BASE
                container.mux(packet)

        with atomic_path(path) as temporary:
            with av.open(str(temporary), "w", format="matroska") as container:
                stream = container.add_stream(encoding.codec, rate=encoding.rate)
                encoding.configure(stream)
                picture: TimedPicture | None = first
                while picture is not None:
                    store(stream.encode(encoding.frame(picture.pixels, number=len(shown))))
                    shown.append((picture.pts, picture.duration))
                    yield done + len(shown)
                    picture = next(rest, None) if len(shown) < PIECE_FRAMES else None
                store(stream.encode(None))
            if sorted(stored) != list(range(len(shown))):
                raise VideoError(f"{encoding.codec} made {len(stored)} other frames of the {len(shown)} that it got")
            times, durations = zip(*(shown[number] for number in stored), strict=True)
            facts = {"times": times, "durations": durations}
            with atomic_path(path.with_suffix(".json")) as beside:
                beside.write_text(json.dumps(facts))
        self.pieces.append(Piece(path=path, times=times, durations=durations))

    def _read(self) -> list[Piece]:
        """The pieces without a gap from the first one on; none where they were made from something else."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if (self.folder / "made_from").read_text() != self._fingerprint:
                return []
        pieces: list[Piece] = []
        while (path := self.folder / f"{len(pieces):06d}.mkv").is_file():
            try:
                facts = json.loads(path.with_suffix(".json").read_text())
                times, durations = (tuple(int(each) for each in facts[key]) for key in ("times", "durations"))
                pieces.append(Piece(path=path, times=times, durations=durations))
            except (OSError, ValueError, KeyError, TypeError):
                break
        return pieces
