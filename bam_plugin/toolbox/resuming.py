"""Find the newest training state that is whole, with its networks.

torch writes the CRC-32 of every tensor into its files and never checks it, so a flipped bit on a disk loads silently.
This module checks it. If a state or its network is damaged, the state before it is taken.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bam_plugin.errors import BamError

LOGGER = logging.getLogger("basicsr")


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The training state to resume from, on the CPU, or None for a new start. BasicSR's own function needs a GPU.

    With `auto_resume` it is the newest whole state of the experiment that `opt` describes, else `path.resume_state`.
    Only tensors and plain containers are unpickled. Raises ResumeError if no state is whole.
    """
    from basicsr.utils import check_resume

    if opt.get("auto_resume"):
        candidates = saved_states(opt["path"]["training_states"])
    else:
        named = opt["path"].get("resume_state")
        candidates = [Path(named)] if named else []
    faults: list[str] = []
    for path in candidates:
        try:
            state = _read_state(path, opt)
        except ResumeError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            LOGGER.warning(f"{fault}; the training goes on from {path.name}, which is older.")
        opt["path"]["resume_state"] = str(path)
        check_resume(opt, state["iter"])
        return state
    if faults:
        advice = (
            "remove what is damaged to start afresh" if opt.get("auto_resume") else "set path.resume_state to another"
        )
        raise ResumeError(f"no training state can be used ({'; '.join(faults)}); {advice}")
    return None


def saved_states(folder: str | os.PathLike) -> list[Path]:
    """The files `ITERATION.state` in `folder`, the newest first."""
    states = [path for path in Path(folder).glob("*.state") if path.stem.isdigit()]
    return sorted(states, key=lambda path: int(path.stem), reverse=True)


def check_whole(path: str | os.PathLike) -> None:
    """Compare the content of a file of `torch.save` with its checksums.

    Raises ResumeError. Older formats have no checksums.
    """
    try:
        with Path(path).open("rb") as file:
            if file.read(1) == b"\x80":  # a pickle: the format before torch 1.6
                return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # damaged bytes can raise anything
        raise ResumeError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if damaged is not None:
        raise ResumeError(f"{path} is damaged (the checksum of {damaged} is another)")


def _read_state(path: Path, opt: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise ResumeError(f"path.resume_state names {path}, which does not exist")
    check_whole(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        iteration = state["iter"]
    except Exception as error:  # damaged bytes can raise anything
        raise ResumeError(f"{path} is not a readable training state ({type(error).__name__}: {error})") from error
    ignored = opt["path"].get("ignore_resume_networks") or ()
    for name in opt:
        if name.startswith("network_") and name not in ignored:
            network = Path(opt["path"]["models"]) / f"net_{name.removeprefix('network_')}_{iteration}.pth"
            if not network.is_file():
                raise ResumeError(f"{path} has no network {network.name} in {network.parent}")
            check_whole(network)
    return state


class ResumeError(BamError):
    """A training state cannot be used to resume a training."""
