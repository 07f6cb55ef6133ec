"""Files that are whole or not there: everything is written beside its destination and renamed when complete."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(destination: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `destination`; rename it to `destination` when the block succeeds.

    The suffix of `destination` is kept, since writers such as OpenCV choose their format by it. When the block raises
    (Ctrl-C included) the temporary file is removed and `destination` is left as it was.
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Suffixes such as .bam.safetensors are kept whole; mkstemp makes the name unique among concurrent writers.
    handle, name = tempfile.mkstemp(prefix=f".{destination.stem}.", suffix=destination.suffix, dir=destination.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to the user; give the result the permissions that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)
