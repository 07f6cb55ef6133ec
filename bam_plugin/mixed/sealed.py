"""Build the network of a stranger's file: it may open no file, connect to nothing and start no process.

A mixed file names a registered network and its options. Some networks open what an option names, or download weights
in their constructors, and to read an old checkpoint can run code. So options that name files are refused, and while a
constructor runs, Python's audit events of this thread show what it tries. The import of modules stays allowed.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

from bam_plugin.packed.errors import UnbuildableNetworkError

_FILE_WORDS = {"path", "file", "url", "dir", "folder", "root", "load", "pretrain", "pretrained", "ckpt", "checkpoint"}
_FORBIDDEN = ("open", "socket.", "subprocess.", "os.", "shutil.", "urllib.", "ftplib.", "http.", "ctypes.", "pty.")
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")
_IMPORTS = "<frozen importlib"

_thread = threading.local()
_installed = threading.Lock()


class SealedError(UnbuildableNetworkError, PermissionError):
    """The network of a file tries something that a file may not ask for."""


def refuse_files(options: Any, name: str = "network_g") -> None:
    """Raise UnbuildableNetworkError when an option, or one inside it, names a file: a text under a name like `path`."""
    if isinstance(options, dict):
        for key, value in options.items():
            refuse_files(value, f"{name}.{key}")
    elif isinstance(options, (list, tuple)):
        for value in options:
            refuse_files(value, name)
    elif isinstance(options, str) and _FILE_WORDS & set(re.split(r"[\W_]+", name.rpartition(".")[2].lower())):
        raise UnbuildableNetworkError(f"the packed file lets its network open a file: {name} is {options!r}")


@contextlib.contextmanager
def sealed() -> Iterator[None]:
    """Inside the block this thread raises SealedError if it opens a file, connects or starts a process."""
    _install()
    before, _thread.sealed = getattr(_thread, "sealed", False), True
    try:
        yield
    finally:
        _thread.sealed = before


def _install() -> None:
    """Add the audit hook once. Python keeps it for the life of the process, and it costs a look at a flag."""
    if _installed.acquire(blocking=False):
        sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not getattr(_thread, "sealed", False) or not event.startswith(_FORBIDDEN) or event in _HARMLESS:
        return
    if sys._getframe(1).f_code.co_filename.startswith(_IMPORTS):
        return
    what = arguments[0] if arguments else ""
    raise SealedError(f"it does what a packed file may not ask for: {event} {what!r}")
