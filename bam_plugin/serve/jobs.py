"""Jobs: pictures that wait for the network, one that is computed, and results that wait to be fetched.

One worker thread runs one picture after the other, on all threads of the engine: a second one beside it would only
share the same processors. All that is kept is bounded: the queue by number, results by age and by bytes. Everything
lies in one temporary folder, which is removed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bam_plugin.errors import BamError
from bam_plugin.serve.settings import ServeSettings
from bam_plugin.upscale import Upscaler

State = Literal["waiting", "running", "done", "failed", "cancelled"]
_TILE = 256  # input pixels; a job can be cancelled, and says how far it is, after each tile


class QueueFullError(BamError):
    """So many jobs wait that no further one is taken."""


class JobCancelledError(BamError):
    """A job ended before its result was there: nobody wants it any more, or its time is up."""


@dataclass(kw_only=True)
class Job:
    """One picture: what is asked for it, and how far it is."""

    id: str
    name: str
    """The picture's own name, for people; no path."""
    folder: Path
    source: Path
    model: str
    scale: float | None
    format: str
    quality: int
    pixels: int
    created: float = field(default_factory=time.monotonic)
    state: State = "waiting"
    done_pixels: int = 0
    error: str | None = None
    error_class: str | None = None
    size: tuple[int, int] | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def result(self) -> Path:
        """The file of the result, there once the state is `done`."""
        return self.folder / f"result.{self.format}"

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return 1.0 if self.state == "done" else min(1.0, self.done_pixels / max(1, self.pixels))

    def cancel(self) -> None:
        """Ask the worker to stop; a job that waits is passed over when its turn comes."""
        self._cancelled.set()

    def check(self, deadline: float) -> None:
        """Raise JobCancelledError where the job should stop."""
        if self._cancelled.is_set():
            raise JobCancelledError("cancelled by the client")
        if time.monotonic() > deadline:
            raise JobCancelledError("its time was up; a smaller picture or a faster network takes less")


class JobBoard:
    """All jobs of a server. Its methods are called in the event loop; the worker is a thread of its own."""

    def __init__(self, *, settings: ServeSettings, finished: Callable[[Job], None] = lambda job: None):
        """`finished` is called in the event loop with each job that ended."""
        self.settings = settings
        self.jobs: dict[str, Job] = {}
        self._finished = finished
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._root = Path(tempfile.mkdtemp(prefix="bam_serve_"))
        self._worker = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Start the worker; call it in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    def stop(self) -> None:
        """Cancel everything, wait for the worker, and remove the folder."""
        for job in self.jobs.values():
            job.cancel()
        self._queue.put(None)
        if self._worker.is_alive():
            self._worker.join()
        shutil.rmtree(self._root, ignore_errors=True)

    @property
    def waiting(self) -> int:
        """How many jobs wait for their turn."""
        return sum(job.state == "waiting" for job in self.jobs.values())

    def new_folder(self) -> tuple[str, Path]:
        """A fresh identifier and an empty folder for one picture."""
        identifier = secrets.token_urlsafe(12)
        folder = self._root / identifier
        folder.mkdir()
        return identifier, folder

    def check_room(self) -> None:
        """Raise QueueFullError where no further job is taken."""
        if self.waiting >= self.settings.max_waiting:
            raise QueueFullError(f"{self.waiting} pictures wait already; try again in some seconds")

    def submit(self, job: Job) -> None:
        """Put a job into the queue. Raises QueueFullError."""
        self.check_room()
        self._forget_old()
        self.jobs[job.id] = job
        self._queue.put(job)

    def remove(self, job: Job) -> None:
        """Cancel a job where it has not ended, and forget it with all its files."""
        job.cancel()
        self.jobs.pop(job.id, None)
        if job.ended.is_set():
            shutil.rmtree(job.folder, ignore_errors=True)

    def _forget_old(self) -> None:
        ended = sorted((job for job in self.jobs.values() if job.ended.is_set()), key=lambda job: job.created)
        total = sum(_bytes(job.result) for job in ended)
        now = time.monotonic()
        for job in ended:
            if now - job.created > self.settings.keep_seconds or total > self.settings.keep_bytes:
                total -= _bytes(job.result)
                self.remove(job)

    @functools.lru_cache(maxsize=3)  # noqa: B019 - one board lives as long as its server
    def _upscaler(self, model: str, scale: float | None) -> Upscaler:
        return Upscaler(model, scale=scale, threads=self.settings.threads)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                self._run(job)
                job.state = "done"
            except JobCancelledError as error:
                job.state, job.error, job.error_class = "cancelled", str(error), type(error).__name__
            except BamError as error:
                job.state, job.error_class = "failed", type(error).__name__
                job.error = str(error).replace(str(job.source), job.name).replace(str(job.result), job.name)
            except Exception as error:  # a fault of ours must not stop the server
                job.state, job.error, job.error_class = "failed", "internal error", type(error).__name__
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._end, job)

    def _run(self, job: Job) -> None:
        deadline = time.monotonic() + self.settings.job_seconds
        job.check(deadline)
        job.state = "running"

        def advance(pixels: int) -> None:
            job.done_pixels += pixels
            job.check(deadline)

        result = self._upscaler(job.model, job.scale).upscale_file(
            job.source,
            job.result,
            scale=job.scale,
            tile=_TILE,
            quality=job.quality,
            max_pixels=self.settings.max_pixels,
            progress=advance,
        )
        job.size, job.seconds, job.notes = result.size, result.seconds, result.notes

    def _end(self, job: Job) -> None:
        job.ended.set()
        with contextlib.suppress(OSError):
            job.source.unlink()
        if job.id not in self.jobs:  # removed while it ran
            shutil.rmtree(job.folder, ignore_errors=True)
        self._finished(job)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
