"""Runs the images of a dataset through a function in parallel threads and stores the results in order."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from bam_plugin.data.dataset_writer import DatasetWriter
from bam_plugin.data.pairs import TooSmallError
from bam_plugin.data.storage import Entry, StorageError
from bam_plugin.errors import BamError


@dataclass
class LeftOut:
    """Images that gave nothing, each with the reason: `failed` cannot be read, `skipped` are too small."""

    failed: list[tuple[Path, str]] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def write_dataset(
    writer: DatasetWriter,
    paths: Sequence[Path],
    work: Callable[[Path], dict[str, list[Entry]]],
    *,
    label: str,
    workers: int | None = None,
    progress: bool = True,
) -> LeftOut:
    """Store what `work` makes of each path that `writer` does not hold yet, then finish `writer`.

    Threads suffice: decoding, resizing and encoding leave Python's lock. `workers` is one per core by default. Progress
    with the time left goes to standard error. Raises BamError when no image at all is usable.
    """
    left_out = LeftOut()
    if writer.complete:
        writer.finish()
        return left_out
    queue = iter([path for path in paths if str(path) not in writer.done])
    waiting: collections.deque[tuple[Path, concurrent.futures.Future]] = collections.deque()
    workers = workers or os.cpu_count() or 1
    with (
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(paths), initial=len(writer.done), unit="image", desc=label, disable=not progress) as bar,
    ):
        try:
            while True:
                # A few images ahead of the writer, so that memory stays bounded.
                while len(waiting) < 2 * workers and (path := next(queue, None)) is not None:
                    waiting.append((path, pool.submit(work, path)))
                if not waiting:
                    break
                path, future = waiting.popleft()
                try:
                    writer.put(str(path), future.result())
                except StorageError:
                    raise
                except TooSmallError as error:
                    left_out.skipped.append((path, str(error)))
                except BamError as error:
                    left_out.failed.append((path, str(error)))
                bar.update()
        except BaseException:
            for _, future in waiting:
                future.cancel()
            raise
    if not writer.done:
        shutil.rmtree(writer.work)
        path, reason = (*left_out.failed, *left_out.skipped)[0]
        raise BamError(f"none of the {len(paths)} images is usable; the first is {path}: {reason}")
    writer.finish()
    return left_out
