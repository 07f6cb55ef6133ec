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

from bam_plugin.errors import BamError
from bam_plugin.files import atomic_path
from bam_plugin.toolbox import compat

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

            for note in resolve_epochs(opt["train"]):
                sys.stderr.write(f"bam_plugin: {note}\n")
        return opt, args

    module.parse_options = parse_options  # type: ignore[attr-defined]


def _prepare(is_train: bool) -> bool:
    """For an option file of ours: register everything, repair the pipelines, expand the file. Returns whether it is."""
    from bam_plugin.config import option_file, prepare_arguments

    path = option_file(sys.argv[1:])
    if path is None or not _is_ours(path):
        return False
    compat.repair_pipelines()
    for name in ("bam_plugin.archs", "bam_plugin.models", "bam_plugin.optim"):
        importlib.import_module(name)
    _repair_running_script()
    _adapt_sampler()
    # BasicSR copies the file into the experiment after the options are parsed: it must outlive this call.
    folder = tempfile.TemporaryDirectory(prefix="bam_options_")
    atexit.register(folder.cleanup)
    sys.argv[1:] = prepare_arguments(sys.argv[1:], is_train=is_train, folder=folder.name)
    return True


def _is_ours(path: str) -> bool:
    """Whether an option file needs this package: it has includes or methods, or names what nobody has registered.

    A file that BasicSR and the running project serve by themselves is left to them: not even our names are registered,
    which could be theirs as well.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # BasicSR reports it in its own way.
        return False
    if not isinstance(values, dict):
        return False
    return any(key in values for key in _OUR_KEYS) or any(
        name not in registry and f"{name}_basicsr" not in registry for registry, name in _named_types(values)
    )


def _named_types(values: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """(registry, name) of everything that an option file wants to be built."""
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
    """A train.py that runs as a script has its own copy of the function that needs a GPU to resume."""
    script = sys.modules.get("__main__")
    if script is not None and hasattr(script, "train_pipeline") and hasattr(script, "load_resume_state"):
        script.load_resume_state = compat.load_resume_state  # type: ignore[attr-defined]


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
