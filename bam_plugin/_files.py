"""Files that are whole or not there: everything is written beside its destination and renamed when complete."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_STEM_KEPT = 40  # characters; with 4 bytes each the temporary name stays below the 255 bytes that file systems allow


@contextlib.contextmanager
def atomic_path(destination: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `destination`; rename it to `destination` when the block succeeds.

    The suffix of `destination` is kept, since writers such as OpenCV choose their format by it. When the block raises
    (Ctrl-C included) the temporary file is removed and `destination` is left as it was.
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, and unique among concurrent writers. The name is chosen before the file is made, so that an interruption
    # at any moment finds what to remove.
    temporary = destination.parent / f".{destination.stem[:_STEM_KEPT]}.{secrets.token_hex(8)}{destination.suffix}"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)
