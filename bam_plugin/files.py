"""Files that are whole or not there: everything is written beside its destination and renamed when complete.

The content is on the disk before the name is: after a loss of power no name stands for half a file. A process that is
killed (`kill -9`, no power) cannot remove its unfinished file. It is locked as long as its process lives, so a later
run knows what was abandoned, and `remove_abandoned` takes it away.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and nothing removed
    fcntl = None

_STEM_KEPT = 40  # characters; with 4 bytes each the temporary name stays below the 255 bytes that file systems allow
_TEMPORARY = re.compile(r"\..*\.bam-[0-9a-f]{16}(\.[^.]*)?")


@contextlib.contextmanager
def atomic_path(destination: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `destination`; rename it to `destination` when the block succeeds.

    The suffix of `destination` is kept, since writers such as OpenCV choose their format by it. The block writes into
    the file that is there (it is empty, and locked). When the block raises (Ctrl-C included) the temporary file is
    removed and `destination` is left as it was.
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    while True:
        # Hidden, and unique among concurrent writers. The name is chosen before the file is made, so that an
        # interruption at any moment finds what to remove.
        name = f".{destination.stem[:_STEM_KEPT]}.bam-{secrets.token_hex(8)}{destination.suffix}"
        temporary = destination.parent / name
        try:
            with _locked(temporary):
                if not temporary.exists():
                    continue  # taken for an abandoned one in the moment before it was locked
                yield temporary
                _flush(temporary)
                temporary.replace(destination)
                _flush(destination.parent)
                return
        finally:
            temporary.unlink(missing_ok=True)


def remove_abandoned(folder: str | os.PathLike) -> list[Path]:
    """Remove the unfinished files in `folder` whose processes have ended, and return their paths.

    Only regular files with a name that `atomic_path` makes, and only unlocked ones. A file that cannot be opened or
    locked stays.
    """
    if fcntl is None:
        return []
    removed = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_unlocked(Path(entry.path))
                    removed.append(Path(entry.path))
    return sorted(removed)


def _flush(path: Path) -> None:
    """Wait until what `path` holds is on the disk; raises OSError where that fails (a full disk tells only now)."""
    folder = path.is_dir()
    if folder and fcntl is None:
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        with contextlib.suppress(OSError) if folder else contextlib.nullcontext():  # some file systems keep no folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Make the file `path`, and lock it within the block."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    if fcntl is None:
        os.close(descriptor)  # Windows renames no open file
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_unlocked(path: Path) -> None:
    """Raises OSError where the file is locked, or no regular file."""
    assert fcntl is not None
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # While it is locked here its maker waits, and then sees that it is gone.
        path.unlink()
    finally:
        os.close(descriptor)
