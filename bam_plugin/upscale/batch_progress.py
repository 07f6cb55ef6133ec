"""Progress through a batch of pictures: number of the picture, megapixels per second, time left, and failures.

On a terminal one line moves (tqdm); in a log file each picture leaves one line. Megapixels are those of the inputs,
with as many decimals as the batch needs to be more than 0.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from bam_plugin.errors import BamError
from bam_plugin.upscale.tolerant_stream import TolerantStream

_BAR = (
    "{{desc}}{{percentage:3.0f}}%|{{bar}}| {{n:.{0}f}}/{{total:.{0}f}} MP "
    "[{{elapsed}}, ETA {{remaining}}, {{rate_noinv_fmt}}]"
)


def _decimals(pixels: int) -> int:
    """Decimals that show at least two digits of so many pixels in megapixels: 2 from 0.1 MP on, never more than 6."""
    return min(6, max(2, 8 - len(str(pixels))))


def explain_failure(error: Exception, source: Path) -> str:
    """One line for a person: the reason why the picture `source` has no result."""
    if isinstance(error, BamError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{source}: not enough memory; a smaller --tile needs less"
    return f"{source}: {type(error).__name__}: {error}"


def list_failures(failures: Sequence[str], *, files: int, stream: TextIO | TolerantStream) -> None:
    """The end of a batch of `files` pictures: the lines of those that failed, if any did."""
    if failures:
        stream.write(f"{len(failures)} of {files} failed:\n" + "".join(f"  {failure}\n" for failure in failures))


class BatchProgress:
    """Counts pixels over `files` pictures of `pixels` pixels in all. Use it in a `with` block."""

    def __init__(self, *, files: int, pixels: int, stream: TextIO | TolerantStream, quiet: bool = False):
        self._files, self._total, self._stream, self._quiet = files, pixels, stream, quiet
        self._decimals = _decimals(pixels)
        self._done = 0
        self._number = 0
        self._name = ""
        self._started = time.perf_counter()
        moving = stream.isatty() and not quiet
        self._bar = tqdm(
            total=pixels / 1e6,
            unit="MP",
            file=stream,
            disable=not moving,
            dynamic_ncols=True,
            mininterval=0.2,
            bar_format=_BAR.format(self._decimals),
            leave=False,
        )

    def __enter__(self) -> BatchProgress:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    @contextlib.contextmanager
    def picture(self, name: str, pixels: int) -> Iterator[None]:
        """One picture of `pixels` pixels.

        Pixels that it does not `advance` within the block leave the remaining work.
        """
        self._number += 1
        self._name = name
        self._bar.set_description_str(f"{self._number}/{self._files} {name} ")
        before = self._done
        try:
            yield
        finally:
            left_out = pixels - (self._done - before)
            self._total -= left_out
            if not self._bar.disable:
                self._bar.total = self._total / 1e6
                self._bar.refresh()
            elif not self._quiet:
                self._stream.write(self._line())

    def advance(self, pixels: int) -> None:
        """Count pixels as done."""
        self._done += pixels
        self._bar.update(pixels / 1e6)

    def write(self, text: str, stream: TextIO | TolerantStream) -> None:
        """Write a line to another stream without breaking the moving one."""
        self._bar.clear()
        stream.write(text)
        self._bar.refresh()

    def _line(self) -> str:
        seconds = time.perf_counter() - self._started
        rate = self._done / seconds if seconds > 0 else 0.0
        left = f"{tqdm.format_interval((self._total - self._done) / rate)}" if rate > 0 else "?"
        sizes = f"{self._done / 1e6:.{self._decimals}f}/{self._total / 1e6:.{self._decimals}f} MP"
        return f"{self._number}/{self._files} {self._name}  {sizes}, {rate / 1e6:.3g} MP/s, ETA {left}\n"
