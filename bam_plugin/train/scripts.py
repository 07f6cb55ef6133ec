"""Training scripts of other projects with everything of this package: `bam run SCRIPT.py ARGUMENTS...`.

When such a script parses an option file of ours, our networks, models, datasets, metrics and optimizers are registered,
BasicSR's pipelines are repaired, and the file is checked and expanded. Option files of other projects pass untouched,
and nothing of BasicSR is edited. The line `import bam_plugin` in the script does the same (`toolbox/arrival.py`).
"""

from __future__ import annotations

import atexit
import functools
import importlib
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bam_plugin.config import option_file, prepare_arguments
from bam_plugin.errors import BamError
from bam_plugin.toolbox import compat, resuming
from bam_plugin.toolbox.registration import register_everything

_OUR_KEYS = ("import", "include", "method", "methods")


class ScriptError(BamError):
    """There is no such script."""


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Run the Python file `path` as `python path arguments...` would, but with this package.

    Raises ScriptError if there is no such file. Errors of the script itself, SystemExit included, pass.
    """
    script = Path(path)
    if not script.is_file():
        raise ScriptError(f"there is no script {path} (looked in {Path.cwd()}); name a file such as basicsr/train.py")
    compat.require_basicsr()
    previous = sys.argv, sys.path[:]
    sys.argv, sys.path[:1] = [path, *arguments], [str(script.resolve().parent)]
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = previous


def parse_with_bam(parse: Callable[..., Any], root_path: str, is_train: bool) -> Any:
    """BasicSR's `parse(root_path, is_train)` of the arguments of this process, after their preparation.

    A BamError names the mistake in the option file. It ends the process with a message and its exit code.
    """
    try:
        ours = _prepare(is_train)
    except BamError as error:
        sys.stderr.write(f"bam_plugin: {type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from None
    opt, args = parse(root_path, is_train)
    if ours and is_train:
        from bam_plugin.optim import resolve_epochs

        for note in resolve_epochs(opt["train"]):
            sys.stderr.write(f"bam_plugin: {note}\n")
    return opt, args


def _prepare(is_train: bool) -> bool:
    """For an option file of ours: register everything, repair the pipelines, expand the file. Returns whether it is."""
    path = option_file(sys.argv[1:])
    if path is None or not _is_ours(path):
        return False
    compat.repair_pipelines()
    register_everything()
    _repair_running_script()
    _adapt_sampler()
    # BasicSR copies the file into the experiment after it has parsed the options, so the file must outlive this call.
    folder = tempfile.TemporaryDirectory(prefix="bam_options_")
    atexit.register(folder.cleanup)
    sys.argv[1:] = prepare_arguments(sys.argv[1:], is_train=is_train, folder=folder.name)
    return True


def _is_ours(path: str) -> bool:
    """Whether an option file needs this package: it has includes or methods, or a name that nobody has registered.

    A file that BasicSR and the running project can serve is left to them. Then not even our names are registered, since
    the project may use the same names.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # BasicSR reports the mistake in its own way.
        return False
    if not isinstance(values, dict):
        return False
    return any(key in values for key in _OUR_KEYS) or any(
        name not in registry and f"{name}_basicsr" not in registry for registry, name in _named_types(values)
    )


def _named_types(values: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """(registry, name) of everything that an option file builds."""
    for package in ("archs", "data", "metrics", "models"):
        importlib.import_module(f"basicsr.{package}")
    from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

    def entries(section: Any) -> list[Any]:
        return list(section.values()) if isinstance(section, dict) else []

    val = values.get("val")
    wanted = [(MODEL_REGISTRY, {"type": values.get("model_type")})]
    wanted += [(ARCH_REGISTRY, section) for key, section in values.items() if str(key).startswith("network_")]
    wanted += [(DATASET_REGISTRY, section) for section in entries(values.get("datasets"))]
    wanted += [(METRIC_REGISTRY, each) for each in entries(val.get("metrics") if isinstance(val, dict) else None)]
    for registry, section in wanted:
        name = section.get("type") if isinstance(section, dict) else None
        if isinstance(name, str):
            yield registry, name


def _repair_running_script() -> None:
    """Repair a train.py that runs as a script: it has its own copy of the function that needs a GPU to resume."""
    script = sys.modules.get("__main__")
    if script is not None and hasattr(script, "train_pipeline") and hasattr(script, "load_resume_state"):
        script.load_resume_state = resuming.load_resume_state  # type: ignore[attr-defined]


def _adapt_sampler() -> None:
    """Let BasicSR's sampler tell datasets the epoch and the sample number, from which they derive a crop.

    By itself it hands on indices of images, so the copies of `dataset_enlarge_ratio` would be equal patches.
    """
    import torch
    from basicsr.data.data_sampler import EnlargedSampler

    original_iter, original_set = EnlargedSampler.__iter__, EnlargedSampler.set_epoch
    if hasattr(original_iter, "__wrapped__"):
        return

    @functools.wraps(original_iter)
    def iterate(self: Any) -> Iterator[int]:
        if not hasattr(self.dataset, "set_epoch"):
            return original_iter(self)
        generator = torch.Generator()
        generator.manual_seed(self.epoch)
        order = torch.randperm(self.total_size, generator=generator).tolist()
        return iter(order[self.rank : self.total_size : self.num_replicas])

    @functools.wraps(original_set)
    def set_epoch(self: Any, epoch: int) -> None:
        original_set(self, epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    EnlargedSampler.__iter__, EnlargedSampler.set_epoch = iterate, set_epoch
