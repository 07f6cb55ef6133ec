"""Collections of PNG images under keys: LMDBs as BasicSR reads them, and plain folders."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bam_plugin.errors import BamError, MissingDependencyError, install_command

# PNG level of every stored image; recorded in meta_info.txt as BasicSR does.
PNG_LEVEL = 1
# LMDB's own bytes per entry at most: a node, a possibly half-empty branch page, and the unused end of the last page.
_OVERHEAD_PER_ENTRY = 3 * 4096
_SPARE_MAP_BYTES = 1 << 24

# The LMDBs that this process reads, by resolved path.
_environments: dict[Path, Any] = {}
_environments_lock = threading.Lock()


class StorageError(BamError):
    """The package cannot write or read a collection of images."""


class AlreadyPreparedError(StorageError):
    """A result exists already. The package never overwrites one."""


@dataclass(frozen=True)
class Entry:
    """One stored image: `key` (name without suffix), PNG bytes, (H, W, C)."""

    key: str
    png: bytes
    shape: tuple[int, int, int]


class Store(Protocol):
    """One collection of a dataset that is being written."""

    def put(self, entries: Iterable[Entry]) -> None:
        """Store entries for good, so that they survive a killed process."""
        ...

    def has(self, key: str) -> bool:
        """Whether `key` is stored for good."""
        ...

    def finish(self, shapes: dict[str, tuple[int, int, int]]) -> None:
        """Complete the collection. `shapes` lists the entries that it must hold."""
        ...

    def close(self) -> None:
        """Release files. The collection can be opened again."""
        ...


class LmdbStore:
    """An LMDB with `meta_info.txt` (`KEY.png (H,W,C) LEVEL` per line), as BasicSR's `io_backend: lmdb` reads it.

    LMDB must know its map size beforehand. It follows from upper bounds: `png_bytes` of all images together and the
    number of `entries`.
    """

    def __init__(self, *, path: Path, png_bytes: int, entries: int) -> None:
        self.path = path
        map_size = png_bytes + entries * _OVERHEAD_PER_ENTRY + _SPARE_MAP_BYTES
        self._environment = require_lmdb().open(str(path), map_size=map_size)

    def put(self, entries: Iterable[Entry]) -> None:
        """Store entries in one transaction."""
        with self._environment.begin(write=True) as transaction:
            for entry in entries:
                transaction.put(entry.key.encode("ascii"), entry.png)

    def has(self, key: str) -> bool:
        """Whether `key` is stored."""
        with self._environment.begin() as transaction:
            return transaction.get(key.encode("ascii")) is not None

    def finish(self, shapes: dict[str, tuple[int, int, int]]) -> None:
        """Write meta_info.txt."""
        lines = [f"{key}.png ({h},{w},{c}) {PNG_LEVEL}\n" for key, (h, w, c) in sorted(shapes.items())]
        (self.path / "meta_info.txt").write_text("".join(lines))
        self._environment.sync(True)
        self.close()

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()


class FolderStore:
    """A folder of `KEY.png` files."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def put(self, entries: Iterable[Entry]) -> None:
        """Write one file per entry."""
        for entry in entries:
            (self.path / f"{entry.key}.png").write_bytes(entry.png)

    def has(self, key: str) -> bool:
        """Whether the file exists."""
        return (self.path / f"{key}.png").is_file()

    def finish(self, shapes: dict[str, tuple[int, int, int]]) -> None:
        """Do nothing: all files are written."""

    def close(self) -> None:
        """Do nothing: no file is open."""


def check_space(folder: Path, needed: int) -> None:
    """Raise StorageError if the disk of `folder` has fewer than `needed` bytes free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StorageError(
            f"about {needed / 1e9:.2f} GB are needed in {folder}, {free / 1e9:.2f} GB are free: "
            "make room or choose another root."
        )


def read_meta_info(path: str | os.PathLike) -> dict[str, tuple[int, int, int]]:
    """Key -> (H, W, C) of an LMDB's meta_info.txt. Raises StorageError if it is missing or malformed."""
    meta = Path(path) / "meta_info.txt"
    try:
        lines = meta.read_text().splitlines()
        table = {}
        for line in lines:
            name, shape, *_ = line.split(" ")
            height, width, channels = (int(number) for number in shape.strip("()").split(","))
            table[name.split(".")[0]] = (height, width, channels)
        return table
    except FileNotFoundError as error:
        raise StorageError(f"{meta} is missing: expected an LMDB made by `bam prepare` at {path}.") from error
    except ValueError as error:
        raise StorageError(
            f"{meta} is malformed ({error}): expected lines such as `0001_s001.png (480,480,3) 1`."
        ) from error


def open_lmdb(path: Path):
    """The read-only environment of the LMDB at `path`, opened once per process. Raises StorageError if there is none.

    LMDB refuses a second environment of one file in a process. Forked workers use the one that they inherit. That is
    safe, because nobody writes and nobody holds locks.
    """
    path = path.resolve()
    # Without the lock, two threads could both find it closed.
    with _environments_lock:
        if path in _environments:
            return _environments[path]
        if not (path / "data.mdb").is_file():
            raise StorageError(
                f"expected an LMDB (a folder with data.mdb), found none at {path}: make it with `bam prepare`."
            )
        try:
            # No readahead, because the images of a batch lie anywhere in the file.
            _environments[path] = require_lmdb().open(str(path), readonly=True, lock=False, readahead=False)
        except lmdb_errors() as error:
            raise StorageError(f"cannot open the LMDB at {path}: {error}") from error
        return _environments[path]


def close_lmdb(path: Path) -> None:
    """Close the LMDB that `open_lmdb` opened, so that other code (BasicSR's datasets) can open it in this process."""
    environment = _environments.pop(path.resolve(), None)
    if environment is not None:
        environment.close()


def require_lmdb() -> Any:
    """The module lmdb. Raises MissingDependencyError if it is not installed."""
    try:
        import lmdb
    except ImportError as error:
        raise MissingDependencyError(
            f"LMDBs need the package lmdb, which is not installed; run: {install_command('train')} (or prepare folders "
            "of images, with --store folder)"
        ) from error
    return lmdb


def lmdb_errors() -> tuple[type[Exception], ...]:
    """The exceptions of LMDB, for an `except` clause; none if it is not installed."""
    try:
        return (require_lmdb().Error,)
    except MissingDependencyError:
        return ()
