"""BasicSR's own commands with everything of bam_plugin: `python basicsr/train.py -opt ...` in a clone of BasicSR.

`enable` puts a .pth file into the active environment; from then on BasicSR's option parser brings our archs, models,
datasets, metrics and optimizers along, and option files of ours are checked and expanded. Option files of other
projects pass untouched, and nothing of BasicSR is edited.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import subprocess
import sys
import sysconfig
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bam_plugin import _compat
from bam_plugin._files import atomic_path
from bam_plugin.errors import BamError

# Read after the .pth files by which development installations are found.
FILE_NAME = "zz_bam_plugin.pth"
# One line; a removed bam_plugin must not disturb the start of the interpreter.
_CONTENT = 'import sys; exec("try:\\n    import bam_plugin._startup\\nexcept ImportError:\\n    pass")\n'
_OUR_KEYS = ("include", "method", "methods")


class HookError(BamError):
    """The start-up hook cannot be installed or removed."""


def hook_file() -> Path:
    """Where the active environment keeps the hook, enabled or not."""
    return Path(sysconfig.get_path("purelib")) / FILE_NAME


def enable() -> bool:
    """Install the hook in the active environment; returns whether it was not there before.

    Raises HookError when the environment is not writable, or when its interpreter does not find bam_plugin by itself.
    """
    path = hook_file()
    if path.is_file() and path.read_text() == _CONTENT:
        return False
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(_CONTENT)
    except OSError as error:
        raise HookError(f"{path} cannot be written ({error}); use a virtual environment of your own") from error
    if not _works():
        path.unlink()
        raise HookError(
            f"an interpreter started by {sys.executable} does not find bam_plugin, so the hook would do nothing; "
            "install it there first: pip install bam-plugin, or pip install -e . in a checkout"
        )
    return True


def disable() -> bool:
    """Remove the hook from the active environment; returns whether it was there."""
    path = hook_file()
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HookError(f"{path} cannot be removed ({error})") from error
    return True


def extend_parser(module: types.ModuleType) -> None:
    """Replace `parse_options` of BasicSR's module basicsr.utils.options."""
    original = module.parse_options

    @functools.wraps(original)
    def parse_options(root_path: str, is_train: bool = True) -> Any:
        try:
            ours = _prepare(is_train)
        except BamError as error:
            sys.stderr.write(f"bam_plugin: {type(error).__name__}: {error}\n")
            raise SystemExit(error.exit_code) from None
        opt, args = original(root_path, is_train)
        if ours and is_train:
            from bam_plugin.optim import resolve_epochs

            resolve_epochs(opt["train"])
        return opt, args

    module.parse_options = parse_options  # type: ignore[attr-defined]


def _prepare(is_train: bool) -> bool:
    """Register everything, repair the pipelines, expand the option file on the command line if it is one of ours."""
    from bam_plugin.config import prepare_arguments

    _compat.repair_pipelines()
    for name in ("bam_plugin.archs", "bam_plugin.models", "bam_plugin.optim"):
        importlib.import_module(name)
    _repair_running_script()
    _adapt_sampler()
    if not _is_ours(sys.argv[1:]):
        return False
    # BasicSR copies the file into the experiment after the options are parsed: it must outlive this call.
    folder = tempfile.TemporaryDirectory(prefix="bam_options_")
    atexit.register(folder.cleanup)
    sys.argv[1:] = prepare_arguments(sys.argv[1:], is_train=is_train, folder=folder.name)
    return True


def _is_ours(argv: list[str]) -> bool:
    """Whether the option file in `argv` uses what only this package knows."""
    import yaml
    from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

    from bam_plugin.config import option_file

    path = option_file(argv)
    if path is None:
        return False
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # BasicSR reports it in its own way.
        return False
    if not isinstance(values, dict):
        return False
    registries = (ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY)
    names = {name for registry in registries for name, value in registry if value.__module__.startswith("bam_plugin.")}
    return any(key in values for key in _OUR_KEYS) or not names.isdisjoint(_types_in(values))


def _types_in(values: Any) -> set[str]:
    """All texts under the keys `type` and `model_type`, at any depth."""
    if not isinstance(values, dict):
        return set()
    found = {value for key, value in values.items() if key in ("type", "model_type") and isinstance(value, str)}
    return found.union(*(_types_in(value) for value in values.values()))


def _repair_running_script() -> None:
    """A train.py that runs as a script has its own copy of the function that needs a GPU to resume."""
    script = sys.modules.get("__main__")
    if script is not None and hasattr(script, "train_pipeline") and hasattr(script, "load_resume_state"):
        script.load_resume_state = _compat.load_resume_state  # type: ignore[attr-defined]


def _adapt_sampler() -> None:
    """BasicSR's sampler for datasets that derive a crop from epoch and sample number: it tells them both.

    As it is it hands on indices of images, so that the copies of `dataset_enlarge_ratio` would be equal patches.
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


def _works() -> bool:
    """Whether a fresh interpreter, away from this folder, loads the hook."""
    program = "import sys; sys.exit('bam_plugin._startup' not in sys.modules)"
    # -E: a PYTHONPATH of this shell will not be there the next time.
    with tempfile.TemporaryDirectory() as elsewhere:
        return subprocess.run([sys.executable, "-E", "-c", program], cwd=elsewhere, check=False).returncode == 0
