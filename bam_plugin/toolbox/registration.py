"""The packages that fill BasicSR's registries, by name. They are imported at the first look-up of a name.

So a module that builds networks does not depend on the packages that define them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from bam_plugin.errors import BamError
from bam_plugin.toolbox import compat

NETWORKS = ["bam_plugin.archs", "basicsr.archs"]
"""Packages that register networks."""
PIPELINE = ["basicsr.data", "basicsr.losses", "basicsr.metrics", "bam_plugin.models", "bam_plugin.optim"]
"""Packages that register the other names of a training or a test: datasets, losses, metrics, models, optimizers."""


class ImportOptionError(BamError):
    """A module that a user names by `--import`, or an option file by `import:`, cannot be imported."""


def register_networks() -> None:
    """Import the packages that register networks. Raises MissingDependencyError without BasicSR."""
    _import(NETWORKS)


def register_everything() -> None:
    """Import the packages that register all names of an option file. Raises MissingDependencyError without BasicSR."""
    _import([*NETWORKS, *PIPELINE])


def _import(packages: list[str]) -> None:
    compat.require_basicsr()
    for package in packages:
        importlib.import_module(package)


def import_by_name(names: Iterable[str]) -> None:
    """Import modules of the user's, each once: `my_project.archs`, or a Python file such as `archs/my_arch.py`.

    Modules and files are looked for in the current directory, too. Raises ImportOptionError with what the import
    raised.
    """
    compat.apply()
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # it stays there, because the module may import its neighbours later
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name))
            else:
                importlib.import_module(name)
        except Exception as error:  # a module of the user may raise anything
            raise ImportOptionError(
                f"import {name}: {type(error).__name__}: {error} (looked in {here}, too); name a module or a Python "
                "file that registers networks"
            ) from error


def _import_file(path: Path) -> None:
    """Import a file under the name of its stem, as `import` in its own folder would."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    known = sys.modules.get(path.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path:
        return
    if known is not None:
        raise ImportError(f"a module {path.stem} is imported already, from {getattr(known, '__file__', None)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
