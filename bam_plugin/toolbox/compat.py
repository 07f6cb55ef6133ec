"""Every quirk of BasicSR's and torchvision's versions, in one place. No file of theirs is changed.

`apply()` makes `import basicsr` possible beside a current torchvision and imports neither. `repair_pipelines()` repairs
functions of BasicSR that need a GPU without reason: the launcher and the resume loader. Both are idempotent.
Tested with BasicSR 1.4.2, the newest release. Its git master differs by additions (optimizers by name, `yaml_load`):
no version number is asked, the models of this package override what 1.4.2 lacks and use nothing that only master has.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import logging
import os
import pkgutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bam_plugin.errors import BamError, MissingDependencyError

# torchvision removed this module in 0.17; BasicSR's degradations import rgb_to_grayscale from it.
_REMOVED_MODULE = "torchvision.transforms.functional_tensor"
LEAST_TORCH = (2, 6)


def apply() -> None:
    """Make BasicSR importable beside any torchvision.

    Call it before the first `import basicsr`. A repetition is cheap.
    """
    if not any(isinstance(finder, _RemovedModuleFinder) for finder in sys.meta_path):
        # It comes last, so the ordinary finder answers first if torchvision still has the module.
        sys.meta_path.append(_RemovedModuleFinder())


def require_basicsr() -> types.ModuleType:
    """Apply the repairs and import BasicSR.

    Raises MissingDependencyError with the command that installs it, also for a torch before 2.6, which can run code
    from a checkpoint in spite of `weights_only`.
    """
    apply()
    try:
        installed = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        installed = ""  # not from a package: its import tells more
    if installed and tuple(int(part) for part in installed.split(".")[:2]) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        raise MissingDependencyError(
            f"torch {installed} is installed, {least} or later is needed: before, a checkpoint can run code; run: "
            f"pip install 'torch>={least}'"
        )
    try:
        return importlib.import_module("basicsr")
    except ModuleNotFoundError as error:
        raise MissingDependencyError.for_training(error.name) from error


def repair_pipelines() -> None:
    """Replace BasicSR's launcher and resume loader by ones that also work without a GPU."""
    require_basicsr()
    import basicsr.train
    import basicsr.utils.dist_util
    import basicsr.utils.options

    from bam_plugin.toolbox.resuming import load_resume_state

    basicsr.train.load_resume_state = load_resume_state
    # options.py holds its own reference to init_dist.
    basicsr.utils.dist_util.init_dist = init_dist
    basicsr.utils.options.init_dist = init_dist


def import_registered(package: str, suffix: str) -> list[str]:
    """Import each module of `package` whose name ends with `suffix` (such as `_arch`), so that it registers itself.

    Returns the full names of the modules, sorted.
    """
    require_basicsr()
    folder = Path(sys.modules[package].__path__[0])
    names = sorted(info.name for info in pkgutil.iter_modules([str(folder)]) if info.name.endswith(suffix))
    for name in names:
        importlib.import_module(f"{package}.{name}")
    return [f"{package}.{name}" for name in names]


def forget_loggers() -> None:
    """Close the log files of an earlier pipeline of this process.

    BasicSR makes its logger once per process, so a second pipeline would write into the file of the first one.
    """
    from basicsr.utils.logger import initialized_logger

    for name in list(initialized_logger):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):  # on a full disk only the last lines are lost
                handler.close()
        del initialized_logger[name]


@contextlib.contextmanager
def replaced(module: types.ModuleType, **attributes: Any) -> Iterator[None]:
    """Set `attributes` of `module` for the duration of the block."""
    originals = {name: getattr(module, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in originals.items():
            setattr(module, name, value)


def init_dist(launcher: str, backend: str | None = None, port: int | None = None, **kwargs: Any) -> None:
    """Join the process group of `launcher` (`pytorch` or `slurm`): nccl on GPUs, gloo on the CPU.

    BasicSR's own function asks for `rank % device_count` and for nccl, which both fail without a GPU. The rank within
    the machine chooses the device, so several machines work.
    """
    import torch
    import torch.distributed

    if launcher == "slurm":
        _describe_slurm_job(port)
    elif launcher != "pytorch":
        raise BamError(f"the launcher must be none, pytorch or slurm, found {launcher!r}")
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise BamError(
            f"--launcher {launcher} needs the environment variable(s) {', '.join(missing)}; start with: torchrun "
            "--nproc_per_node=2 -m bam_plugin.train -opt FILE --launcher pytorch"
        )
    devices = torch.cuda.device_count()
    if devices:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", os.environ["RANK"])) % devices)
    torch.distributed.init_process_group(backend=backend or ("nccl" if devices else "gloo"), **kwargs)


def _describe_slurm_job(port: int | None) -> None:
    """Set torch.distributed's environment variables from those of Slurm."""
    try:
        rank, world_size = os.environ["SLURM_PROCID"], os.environ["SLURM_NTASKS"]
        nodes = os.environ["SLURM_NODELIST"]
    except KeyError as error:
        raise BamError(f"--launcher slurm needs the environment variable {error}; start with srun") from error
    listing = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True
    ).stdout.split()
    os.environ.update(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=os.environ.get("SLURM_LOCALID", rank))
    os.environ["MASTER_ADDR"] = listing[0]
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    else:
        os.environ.setdefault("MASTER_PORT", "29500")


class _RemovedModuleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Provides the module that torchvision removed, on demand: its public functional module has the same function."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != _REMOVED_MODULE:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        from torchvision.transforms import functional

        module.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
