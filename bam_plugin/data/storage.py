"""Collections of PNG images that are whole or not there: LMDBs as BasicSR reads them, and plain folders.

A job writes several collections at once (HR and each LR scale) into a hidden work folder and moves them to their
places when all are complete; a half-written collection never bears its final name. A journal says which source images
are stored for good, so a killed job goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bam_plugin._files import atomic_path
from bam_plugin.errors import BamError, MissingDependencyError

try:
    import fcntl
except ImportError:  # Windows: two jobs at once in one folder are then not noticed
    fcntl = None

# PNG level of every stored image; recorded in meta_info.txt as BasicSR does.
PNG_LEVEL = 1
# LMDB's own bytes per entry at most: a node, a possibly half-empty branch page, and the unused end of the last page.
_OVERHEAD_PER_ENTRY = 3 * 4096
_SPARE_MAP_BYTES = 1 << 24

# The LMDBs that this process reads, by resolved path.
_environments: dict[Path, Any] = {}


class StorageError(BamError):
    """A collection of images cannot be written or read."""


class AlreadyPreparedError(StorageError):
    """A result to be written exists already; nothing is ever overwritten."""


@dataclass(frozen=True)
class Entry:
    """One stored image: `key` (name without suffix), PNG bytes, (H, W, C)."""

    key: str
    png: bytes
    shape: tuple[int, int, int]


class Store(Protocol):
    """Where the entries of one collection go while a job runs."""

    def put(self, entries: Iterable[Entry]) -> None:
        """Store entries for good: they survive a killed process."""
        ...

    def has(self, key: str) -> bool:
        """Whether `key` is stored for good."""
        ...

    def finish(self, shapes: dict[str, tuple[int, int, int]]) -> None:
        """Complete the collection; `shapes` lists what it must hold."""
        ...

    def close(self) -> None:
        """Release files; the collection can be opened again."""
        ...


class LmdbStore:
    """An LMDB with `meta_info.txt` (`KEY.png (H,W,C) LEVEL` per line), as BasicSR's `io_backend: lmdb` reads it."""

    def __init__(self, *, path: Path, map_size: int) -> None:
        self.path = path
        self._environment = _lmdb().open(str(path), map_size=map_size)

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
        """Nothing is left to be written."""

    def close(self) -> None:
        """Nothing is open."""


class Job:
    """Several collections written together, resumable; use as a context manager.

    outputs: name of a collection -> where it shall lie in the end (`*.lmdb` becomes an LMDB, else a folder).
    settings: whatever decides the content; a work folder left by a job of other settings is refused, not mixed.
    map_bytes: name -> an upper bound of the bytes of all PNGs of an LMDB, entries: name -> their number.
    """

    def __init__(
        self,
        *,
        work: Path,
        outputs: dict[str, Path],
        settings: dict,
        map_bytes: dict[str, int] | None = None,
        entries: int = 0,
    ) -> None:
        self.work, self.outputs = work, outputs
        self._moving = work / "complete"
        if not self._moving.exists():
            refuse_existing(outputs.values())
        work.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(work)
        _check_settings(work, settings)
        self.shapes: dict[str, dict[str, tuple[int, int, int]]] = {name: {} for name in outputs}
        self.done: set[str] = set()
        self._stores: dict[str, Store] = {}
        if self._moving.exists():
            return
        for name, output in outputs.items():
            if output.suffix == ".lmdb":
                bound = (map_bytes or {}).get(name, 0) + entries * _OVERHEAD_PER_ENTRY + _SPARE_MAP_BYTES
                self._stores[name] = LmdbStore(path=work / output.name, map_size=bound)
            else:
                self._stores[name] = FolderStore(path=work / name)
        self._read_journal()

    @property
    def complete(self) -> bool:
        """Whether everything was written by an earlier run and only has to be moved to its place."""
        return self._moving.exists()

    def put(self, source: str, collections: dict[str, list[Entry]]) -> None:
        """Store what was made of `source` and note it in the journal."""
        try:
            for name, entries in collections.items():
                self._stores[name].put(entries)
        except (OSError, *_lmdb_errors()) as error:
            raise StorageError(
                f"cannot write into {self.work} ({error}): make room on the disk and repeat the command to resume."
            ) from error
        record = {"source": source, "entries": {n: [[e.key, *e.shape] for e in es] for n, es in collections.items()}}
        self._journal.write(json.dumps(record) + "\n")
        self._journal.flush()
        self._note(record)

    def finish(self) -> None:
        """Complete all collections and move them to their places."""
        if not self._moving.exists():
            for name, store in self._stores.items():
                store.finish(self.shapes[name])
            self._journal.close()
            self._moving.touch()
        for name, output in self.outputs.items():
            written = self.work / (output.name if output.suffix == ".lmdb" else name)
            if written.exists():
                output.parent.mkdir(parents=True, exist_ok=True)
                written.replace(output)
        self._release()
        shutil.rmtree(self.work)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception: object) -> None:
        for store in self._stores.values():
            store.close()
        if self._stores:
            self._journal.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _note(self, record: dict) -> None:
        self.done.add(record["source"])
        for name, entries in record["entries"].items():
            self.shapes[name].update({key: tuple(shape) for key, *shape in entries})

    def _read_journal(self) -> None:
        """Take over what an earlier run stored; an entry that is noted but lost makes its source be done again."""
        path = self.work / "journal.jsonl"
        records = [record for record in _json_lines(path) if self._is_stored(record)]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
        for record in records:
            self._note(record)
        self._journal = path.open("a")

    def _is_stored(self, record: dict) -> bool:
        return all(self._stores[name].has(key) for name, entries in record["entries"].items() for key, *_ in entries)


def refuse_existing(outputs: Iterable[Path]) -> None:
    """Raise AlreadyPreparedError when one of `outputs` exists."""
    existing = [str(path) for path in outputs if path.exists()]
    if existing:
        raise AlreadyPreparedError(f"already there: {', '.join(existing)}. Use it, or remove it to prepare anew.")


def check_space(folder: Path, needed: int) -> None:
    """Raise StorageError when the disk of `folder` has fewer than `needed` bytes free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StorageError(
            f"about {needed / 1e9:.2f} GB are needed in {folder}, {free / 1e9:.2f} GB are free: "
            "make room or choose another root."
        )


def read_meta_info(path: str | os.PathLike) -> dict[str, tuple[int, int, int]]:
    """Key -> (H, W, C) of an LMDB's meta_info.txt. Raises StorageError when it is missing or malformed."""
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
    """The read-only environment of the LMDB at `path`, opened once per process. Raises StorageError when there is none.

    LMDB refuses a second environment of one file in a process; forked workers use the one they inherit, which is safe
    since nobody writes and no locks are held.
    """
    path = path.resolve()
    if path in _environments:
        return _environments[path]
    if not (path / "data.mdb").is_file():
        raise StorageError(
            f"expected an LMDB (a folder with data.mdb), found none at {path}: make it with `bam prepare`."
        )
    try:
        # Without readahead: the images of a batch lie anywhere in the file.
        _environments[path] = _lmdb().open(str(path), readonly=True, lock=False, readahead=False)
    except _lmdb_errors() as error:
        raise StorageError(f"cannot open the LMDB at {path}: {error}") from error
    return _environments[path]


def close_lmdb(path: Path) -> None:
    """Close what `open_lmdb` opened, so that other code (BasicSR's datasets) can open it in this process."""
    environment = _environments.pop(path.resolve(), None)
    if environment is not None:
        environment.close()


def _lmdb():
    try:
        import lmdb
    except ImportError as error:
        raise MissingDependencyError("LMDBs need the package lmdb: pip install lmdb (or bam-plugin[train]).") from error
    return lmdb


def _lmdb_errors() -> tuple[type[Exception], ...]:
    try:
        return (_lmdb().Error,)
    except MissingDependencyError:
        return ()


def _lock(work: Path):
    if fcntl is None:
        return None
    handle = (work / "lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise StorageError(f"another job is writing into {work}: wait for it or stop it.") from error
    return handle


def _check_settings(work: Path, settings: dict) -> None:
    path = work / "settings.json"
    text = json.dumps(settings, sort_keys=True, indent=1)
    if path.exists() and path.read_text() != text:
        raise StorageError(
            f"{work} was left by a job with other images or settings: repeat it as it was to resume it, "
            "or remove that folder to start anew."
        )
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def _json_lines(path: Path) -> list[dict]:
    """The records of a journal; a line torn by a kill is left out."""
    records = []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records
