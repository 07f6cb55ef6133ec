"""Option files: read, expand and check them before anything starts.

`load_options(path, is_train=True)` gives the options that BasicSR's parser would read, or raises OptionsError with
every mistake by its full key. `prepare_arguments` does the same for the arguments of BasicSR's train.py and
test.py.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bam_plugin.config.loader import LoadedOptions, dump_options, read_options
from bam_plugin.config.problems import OptionsError, Problem
from bam_plugin.files import atomic_path
from bam_plugin.toolbox.registration import import_by_name

__all__ = [
    "LoadedOptions",
    "OptionsError",
    "Problem",
    "check_loaded",
    "dump_options",
    "load_options",
    "network_options",
    "option_file",
    "prepare_arguments",
    "read_options",
]

_logger = logging.getLogger(__name__)


def load_options(
    path: str | Path, *, is_train: bool, method: str | None = None, force: Sequence[str] = (), files: bool = True
) -> LoadedOptions:
    """Read, expand and check an option file.

    is_train: for a training or for a test. method, force: see read_options. files: also check that the folders and
    checkpoints that it names exist, relative to the current directory. A test set without its folders is left out with
    a warning, as long as another one remains. Raises OptionsError.
    """
    loaded = read_options(path, method=method, force=force)
    for note in loaded.notes:
        _logger.warning("%s", note)
    if files and not is_train:
        _leave_out_missing_sets(loaded)
    check_loaded(loaded, is_train=is_train, files=files)
    return loaded


def network_options(path: str | os.PathLike, *, method: str | None = None) -> dict[str, Any]:
    """The `network_g` section of an option file, with its includes, as `method` has it (default: the file's own).

    The modules that the file imports are imported. A training keeps an expanded copy of its file, with the method that
    it used, in its folder under experiments/. Raises OptionsError for a file without the section, or a method that the
    file does not offer.
    """
    loaded = read_options(path, method=method)
    section = loaded.values.get("network_g")
    if not isinstance(section, dict) or "type" not in section:
        raise OptionsError(f"{path}: no section network_g with a type; give the option file of a training")
    import_by_name(loaded.imports)
    return section


def check_loaded(loaded: LoadedOptions, *, is_train: bool, files: bool = True) -> None:
    """Raise OptionsError with all mistakes of an expanded file, if it has any."""
    from bam_plugin.config.check import find_problems

    import_by_name(loaded.imports)
    problems = find_problems(loaded.values, is_train=is_train, files=files)
    if problems:
        lines = [problem.describe(loaded.origins) for problem in problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise OptionsError("\n  ".join([f"{count} in {loaded.path}:", *lines]), problems)


def prepare_arguments(argv: Sequence[str], *, is_train: bool, folder: str | Path) -> list[str]:
    """Check the option file that the arguments of BasicSR's train.py or test.py name, and write its expansion.

    Returns the arguments with `-opt` pointing at the expanded file, of the same name, in `folder` (which must live as
    long as the run: BasicSR copies the file into the experiment). `--force_yml`, `--method` and `--import` are applied
    and left out. Arguments without `-opt` come back as they are, for BasicSR's own message.
    """
    known, rest = _option_arguments(argv)
    if known.opt is None:
        return list(argv)
    import_by_name(known.imports)
    loaded = load_options(known.opt, is_train=is_train, method=known.method, force=known.force_yml)
    expanded = Path(folder) / Path(known.opt).name
    with atomic_path(expanded) as temporary:
        temporary.write_text(dump_options(loaded), encoding="utf-8")
    return ["-opt", str(expanded), *rest]


def option_file(argv: Sequence[str]) -> str | None:
    """The option file that the arguments of BasicSR's train.py or test.py name, or None."""
    return _option_arguments(argv)[0].opt


def _option_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of BasicSR that this package reads, and the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-opt")
    parser.add_argument("--method")
    parser.add_argument("--import", dest="imports", metavar="MODULE", action="append", default=[])
    parser.add_argument("--force_yml", nargs="+", default=[])
    return parser.parse_known_args(list(argv))


def _leave_out_missing_sets(loaded: LoadedOptions) -> None:
    from bam_plugin.config.data import check_data_files

    datasets: Any = loaded.values.get("datasets")
    if not isinstance(datasets, dict):
        return
    missing = {
        name: problems
        for name, values in datasets.items()
        if isinstance(values, dict) and (problems := list(check_data_files(values, ("datasets", name))))
    }
    if len(missing) == len(datasets):
        return
    for name, problems in missing.items():
        _logger.warning("left out: %s", problems[0].describe(loaded.origins))
        del datasets[name]
