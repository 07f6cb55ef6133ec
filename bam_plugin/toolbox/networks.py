"""Networks by name: build one from its options, read its checkpoint, say how many channels its images have.

A network is registered in BasicSR's ARCH_REGISTRY by the package that defines it (see registration.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bam_plugin.errors import BamError, suggest
from bam_plugin.toolbox.registration import register_networks

CHANNEL_OPTIONS = ("num_in_ch", "in_channels", "in_chans", "in_nc")
"""Names under which networks take the number of channels of their input."""
PARAM_KEYS = ("params_ema", "params")
"""Keys under which a checkpoint holds weights, the preferred one first."""
RECORD_KEY = "network_g"
"""Key under which BinarySRModel records the options of the network in its checkpoints."""


class NetworkError(BamError):
    """The options do not build a network."""


class CheckpointError(BamError):
    """A checkpoint is damaged, or does not fit the network."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights, their key in the file ("" for a bare state dict), and the recorded options of the network, if any."""

    state: dict[str, torch.Tensor]
    key: str
    network_g: dict[str, Any] | None


def registered_networks() -> dict[str, Any]:
    """Every registered network: name -> class."""
    register_networks()
    from basicsr.utils.registry import ARCH_REGISTRY

    return dict(iter(ARCH_REGISTRY))


def registered_name(name: Any, registered: Mapping[str, Any]) -> Any:
    """The registered name for `name`. BasicSR adds a suffix to names of several projects, and a file may omit it."""
    if isinstance(name, str) and name not in registered and f"{name}_basicsr" in registered:
        return f"{name}_basicsr"
    return name


def find_network(name: Any) -> Any:
    """The class of the registered network `name`. Raises NetworkError."""
    networks = registered_networks()
    name = registered_name(name, networks)
    if name not in networks:
        raise NetworkError(
            f"{name!r} is no registered network; {suggest(str(name), networks)} (one of your own: --import MODULE)"
        )
    return networks[name]


def build_network(options: Mapping[str, Any]) -> nn.Module:
    """Build the registered network `options["type"]` with the other options as its arguments.

    Raises NetworkError if the type is not registered, or if the network refuses its arguments. The named errors of this
    package pass as they are.
    """
    name = options.get("type")
    network = find_network(name)
    arguments = {key: value for key, value in options.items() if key != "type"}
    try:
        return network(**arguments)
    except BamError:
        raise
    except Exception as error:  # the networks of others fail in every way on options that do not go together
        raise NetworkError(
            f"the network {name!r} cannot be built from {arguments} ({type(error).__name__}: {error})"
        ) from error


def input_channels(network: nn.Module, options: Mapping[str, Any]) -> int:
    """Channels of the input image: the network's option or its host's, else those of the first convolution, else 3."""
    options = {**(options.get("host") or {}), **options}
    stated = next((options[name] for name in CHANNEL_OPTIONS if isinstance(options.get(name), int)), None)
    if stated is not None:
        return stated
    convs = (module for module in network.modules() if hasattr(module, "in_channels"))
    return next((int(conv.in_channels) for conv in convs if hasattr(conv, "kernel_size")), 3)  # type: ignore[arg-type]


def read_checkpoint(path: str | os.PathLike, *, param_key: str | None = None) -> Checkpoint:
    """Read a checkpoint of BasicSR, or a bare state dict.

    `params_ema` is preferred to `params` unless `param_key` names one. Read with `weights_only=True`, so a checkpoint
    cannot run code. Raises CheckpointError.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged bytes can raise anything, and PyTorch's advice to trust the file is bad
        raise CheckpointError(
            f"{path}: a PyTorch file that holds weights alone was expected, found something else; give a checkpoint "
            "such as experiments/NAME/models/net_g_latest.pth"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a dictionary of weights expected, found {type(content).__name__}")
    if param_key is not None and param_key not in content:
        raise CheckpointError(f"{path}: has no {param_key!r}; it has {sorted(map(str, content))[:8]}")
    key = param_key or next((key for key in PARAM_KEYS if key in content), "")
    state = content[key] if key else content
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: holds no weights under {key or 'its top level'!r} (expected {PARAM_KEYS})")
    record = content.get(RECORD_KEY) if key else None
    return Checkpoint(
        state={name.removeprefix("module."): value for name, value in state.items()},
        key=key,
        network_g=record if isinstance(record, dict) and "type" in record else None,
    )


def load_weights(network: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Load strictly. Raises CheckpointError, which lists missing, unknown and misshapen weights."""
    own = network.state_dict()
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    faults = [
        f"{label} {names[:6]}{' ...' if len(names) > 6 else ''}"
        for label, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{where}: does not fit {type(network).__name__} ({'; '.join(faults)}); use the option file of its training"
        )
    network.load_state_dict(state)
