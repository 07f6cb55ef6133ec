"""A stream for lines whose reader may be gone: the work goes on."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO


class TolerantStream:
    """Passes text on to `stream` until that is closed, full or a broken pipe. Later text is dropped.

    `stream` is None if the process was started without it (`>&-`). Text that the stream's encoding lacks (names of
    files may hold any bytes) is written with escapes.
    """

    broken = False
    """Whether something was dropped."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write at once and not when a buffer is full, so that a failure shows at its place."""
        if not self.broken:
            try:
                if self._stream is None:
                    raise ValueError("there is no such stream")
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
                self._stream.flush()
            except (OSError, ValueError):
                self.broken = True
                self._discard()
        return len(text)

    def flush(self) -> None:
        """Do nothing: every text is written at once."""

    def isatty(self) -> bool:
        """Whether a person watches."""
        return not self.broken and self._stream is not None and self._stream.isatty()

    def _discard(self) -> None:
        """What the stream still holds is written to nowhere, else Python fails again when it ends."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = self._stream.fileno()  # type: ignore[union-attr]
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
