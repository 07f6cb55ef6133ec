"""Checkpoints that are whole or not there, with everything that an exact resume needs.

A checkpoint is two files with BasicSR's names: `models/net_g_ITER.pth` and `training_states/ITER.state`. Each is
written to a temporary file and renamed, the network first. So if a state exists, its network does too, however the
process ended. The network file also records the options of its network, under the key `network_g` beside `params`.
BasicSR reads one key of the file and ignores the others, so its strict loading works.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed

from bam_plugin.errors import BamError
from bam_plugin.files import atomic_path, remove_abandoned


def save_atomically(content: dict[str, Any], path: str | os.PathLike) -> None:
    """`torch.save` that leaves the complete file at `path`, or the file that was there before.

    Raises CheckpointSaveError if the file system refuses to write, as on a full disk.
    """
    try:
        # Python's own files say what is wrong. The errors of torch's files speak of positions.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise CheckpointSaveError(
            f"the checkpoint {path} cannot be written ({reason.strerror or reason}); earlier ones are untouched: make "
            "room on the disk and go on with --auto_resume"
        ) from error


def network_record(opt: Mapping[str, Any], net_label: str) -> dict[str, Any]:
    """{"network_g": its option section} for the label `net_g`, in plain containers (`weights_only` safe).

    It is empty if the options have no such section.
    """
    key = f"network_{net_label.removeprefix('net_')}"
    return {key: json.loads(json.dumps(opt[key], default=str))} if key in opt else {}


def tidy_up(opt: Mapping[str, Any]) -> list[Path]:
    """Remove the unfinished files of checkpoints that killed processes left. Returns their paths."""
    folders = (opt["path"]["models"], opt["path"]["training_states"])
    return [path for folder in folders for path in remove_abandoned(folder)]


def random_states() -> dict[str, Any]:
    """The states of all random generators of this process, as tensors and plain containers (`weights_only` safe)."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def random_states_of_all(*, dist: bool) -> list[dict[str, Any]]:
    """`random_states()` of every process, by rank. With `dist` all processes must call it."""
    own = random_states()
    if not dist:
        return [own]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, own)
    return states


def restore_own_random_states(states: Sequence[dict[str, Any]] | dict[str, Any], *, rank: int) -> int:
    """Restore the states of the process `rank`, if they are there; returns of how many processes there are some.

    A single dict is that of rank 0.
    """
    states = [states] if isinstance(states, dict) else states
    if rank < len(states):
        restore_random_states(states[rank])
    return len(states)


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo everything drawn since `random_states()`. GPU states are used if the number of GPUs is the same."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


class CheckpointSaveError(BamError):
    """A checkpoint cannot be written."""
