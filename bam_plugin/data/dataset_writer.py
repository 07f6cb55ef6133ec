"""Writes the collections of a dataset at once (HR and each LR scale), all of them or none, and can be resumed.

The collections grow in a hidden work folder and are moved to their places when all are complete; a half-written
collection never bears its final name. A journal says which source images are stored for good, so a killed run goes on
where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from bam_plugin.data.storage import (
    AlreadyPreparedError,
    Entry,
    FolderStore,
    LmdbStore,
    StorageError,
    Store,
    lmdb_errors,
)
from bam_plugin.files import atomic_path

try:
    import fcntl
except ImportError:  # Windows: two writers at once in one folder are then not noticed
    fcntl = None


def refuse_existing(outputs: Iterable[Path]) -> None:
    """Raise AlreadyPreparedError when one of `outputs` exists."""
    existing = [str(path) for path in outputs if path.exists()]
    if existing:
        raise AlreadyPreparedError(f"already there: {', '.join(existing)}. Use it, or remove it to prepare anew.")


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes when an image is added, removed, replaced or touched."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{path}\0missing\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class DatasetWriter:
    """Several collections written together, resumable; use as a context manager.

    outputs: name of a collection -> where it shall lie in the end (`*.lmdb` becomes an LMDB, else a folder).
    settings: whatever decides the content; a work folder left by a run with other settings is refused, not mixed.
    lists: name of a folder -> where the list of its images shall lie, for BasicSR's `meta_info_file`.
    map_bytes: name -> an upper bound of the bytes of all PNGs of an LMDB, entries: name -> their number.
    """

    def __init__(
        self,
        *,
        work: Path,
        outputs: dict[str, Path],
        settings: dict,
        lists: dict[str, Path] | None = None,
        map_bytes: dict[str, int] | None = None,
        entries: int = 0,
    ) -> None:
        self.work, self.outputs, self.lists = work, outputs, lists or {}
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
            for record in _json_lines(work / "journal.jsonl"):
                self._note(record)
            return
        for name, output in outputs.items():
            if output.suffix == ".lmdb":
                path, bound = work / output.name, (map_bytes or {}).get(name, 0)
                self._stores[name] = LmdbStore(path=path, png_bytes=bound, entries=entries)
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
        except (OSError, *lmdb_errors()) as error:
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
            for name, place in self.lists.items():
                lines = [f"{key}.png ({h},{w},{c})\n" for key, (h, w, c) in sorted(self.shapes[name].items())]
                (self.work / place.name).write_text("".join(lines))
            self._journal.close()
            self._moving.touch()
        # Lists first: where a collection is, its list is, too.
        moves = {self.work / place.name: place for place in self.lists.values()}
        for name, output in self.outputs.items():
            moves[self.work / (output.name if output.suffix == ".lmdb" else name)] = output
        for written, output in moves.items():
            if written.exists():
                output.parent.mkdir(parents=True, exist_ok=True)
                written.replace(output)
        self._release()
        shutil.rmtree(self.work)

    def __enter__(self) -> DatasetWriter:
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


def _lock(work: Path):
    if fcntl is None:
        return None
    handle = (work / "lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise StorageError(f"another run is writing into {work}: wait for it or stop it.") from error
    return handle


def _check_settings(work: Path, settings: dict) -> None:
    path = work / "settings.json"
    text = json.dumps(settings, sort_keys=True, indent=1)
    if path.exists() and path.read_text() != text:
        raise StorageError(
            f"{work} was left by a run with other images or settings: repeat it as it was to resume it, "
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
