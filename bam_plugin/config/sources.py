"""The options that a registered class reads, as its source shows: `opt["key"]`, `train_opt.get("key")`, `"key" in opt`.

The classes of BasicSR and of other plugins take one nested dictionary and declare nothing. Only their source names
their options.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from pathlib import Path

_KEY = r"""["'](\w+)["']"""
_ACCESS = re.compile(rf"""(\w*opt)\b((?:\[["']\w+["']\])*)(?:\[|\.get\(|\.pop\(|\.setdefault\()\s*{_KEY}""")
_MEMBERSHIP = re.compile(rf"""{_KEY}\s+(?:not\s+)?in\s+(?:self\.)?(\w*opt)\b((?:\[["']\w+["']\])*)""")


@functools.cache
def keys_read_by(cls: type) -> dict[str, frozenset[str]]:
    """Section (`""`, `train`, `val`, ... as dotted path from the dictionary that the class gets) -> keys it reads.

    It reads the files of the class and of its bases if they belong to the top-level packages of registered classes. So
    it does not read Python's own files and those of torch.
    """
    found: dict[str, set[str]] = {}
    for path in _source_files(cls):
        text = path.read_text(encoding="utf-8")
        accesses = [(variable, chain, key) for variable, chain, key in _ACCESS.findall(text)]
        accesses += [(variable, chain, key) for key, variable, chain in _MEMBERSHIP.findall(text)]
        for variable, chain, key in accesses:
            parts = re.findall(r"\w+", chain)
            prefix = variable.removesuffix("opt").rstrip("_")
            section = ".".join(([prefix] if prefix else []) + parts)
            found.setdefault(section, set()).add(key)
    return {section: frozenset(keys) for section, keys in found.items()}


def _source_files(cls: type) -> list[Path]:
    files: dict[Path, None] = {}
    for base in inspect.getmro(cls):
        package = base.__module__.partition(".")[0]
        if package in ("builtins", "torch", "abc", "typing"):
            continue
        name = getattr(sys.modules.get(base.__module__), "__file__", None)
        if name is None:
            continue
        path = Path(name)
        # One of our models has its code in several modules of its package.
        if base.__module__.startswith("bam_plugin.models."):
            files.update(dict.fromkeys(sorted(path.parent.glob("*.py"))))
        elif path.suffix == ".py" and path.is_file():
            files[path] = None
    return list(files)
