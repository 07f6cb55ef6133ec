"""Convert a training checkpoint to a packed file: load, build, lower, compare, write.

BasicSR's registry builds the network from the `network_g` section of an option file, or from the one that BinarySRModel
records in its checkpoints. The checkpoint is read with `weights_only=True`. Nothing is written if the packed network
differs from PyTorch by more than the caller allows. The lowering itself is in `lowering.py`, the comparison in
`verify.py`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bam_plugin import __version__
from bam_plugin.config import network_options
from bam_plugin.conversion.layer_report import LayerRow, mixed_rows
from bam_plugin.conversion.lowering import lower_network
from bam_plugin.conversion.verify import Comparison, compare, default_images
from bam_plugin.engine.engine import Engine
from bam_plugin.mixed.mixed_engine import MixedEngine
from bam_plugin.mixed.mixed_network import make_mixed
from bam_plugin.nn.binary_conv import binary_convs
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.format import PackedModel, pack_model, unpack_model
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.toolbox.networks import build_network, input_channels, load_weights, read_checkpoint


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: the model, the bytes of its file, the rows of the report, and the comparison if one was
    made.

    `network` is the PyTorch network that was converted.
    """

    network: nn.Module
    model: PackedModel | MixedModel
    data: bytes
    rows: list[LayerRow]
    comparison: Comparison | None


def convert_network(
    network: nn.Module,
    *,
    num_in_ch: int = 3,
    metadata: Mapping[str, Any] | None = None,
    images: Iterable[np.ndarray] | None = None,
    verify: bool = True,
    require_graph: bool = False,
) -> Conversion:
    """Pack a PyTorch network and compare the two on `images` (default: the fixed ones).

    `metadata` must be JSON. A network that no graph expresses becomes a mixed network if it has binary convolutions,
    `metadata` has the `network_g` that builds it, and `require_graph` is off. Raises ConversionError if the network
    cannot be packed.
    """
    metadata = dict(metadata or {})
    try:
        graph, tensors, rows = lower_network(network, num_in_ch=num_in_ch)
        data = pack_model(PackedModel(graph=graph, tensors=tensors, metadata=metadata))
        model = unpack_model(data)  # compare what readers will get
        engine = Engine(model)
    except ConversionError as error:
        if require_graph or "network_g" not in metadata or not binary_convs(network):
            raise
        model, packed = _convert_mixed(network, num_in_ch, metadata, error)
        rows = mixed_rows(network, model)
        data = pack_model(model)
        engine = MixedEngine(model, network=packed)
    comparison = None
    if verify:
        pictures = default_images(num_in_ch) if images is None else images
        comparison = compare(network.cpu().float(), engine, pictures)
    return Conversion(network=network, model=model, data=data, rows=rows, comparison=comparison)


def _convert_mixed(
    network: nn.Module, num_in_ch: int, metadata: Mapping[str, Any], why: ConversionError
) -> tuple[MixedModel, nn.Module]:
    try:
        return make_mixed(network, num_in_ch=num_in_ch, metadata=metadata, no_graph=str(why))
    except ConversionError as error:
        raise ConversionError(f"no packed graph: {why}; and no mixed network: {error}") from error


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    options: str | os.PathLike | None = None,
    *,
    method: str | None = None,
    param_key: str | None = None,
    facts: Mapping[str, Any] | None = None,
    images: Callable[[int], Iterable[np.ndarray]] = default_images,
    verify: bool = True,
    require_graph: bool = False,
) -> Conversion:
    """Convert a BasicSR checkpoint with the option file of its training, see `convert_network`.

    Without `options` the network is the one that the checkpoint records. BinarySRModel's checkpoints do; for others it
    raises ConversionError. `method` names one of the file's methods. `facts` (training data, terms, metrics, ...) are
    recorded beside the SHA-256 of the source and the options of the network. `images` maps the number of input channels
    to the pictures of the comparison.
    """
    content = read_checkpoint(checkpoint, param_key=param_key)
    section = content.network_g if options is None else network_options(options, method=method)
    if section is None:
        raise ConversionError(
            f"{checkpoint}: holds weights without a record of their network; give the option file of the training "
            "(-opt experiments/NAME/NAME.yml)"
        )
    network = build_network(section)
    load_weights(network, content.state, str(checkpoint))
    metadata = {
        **(facts or {}),
        "producer": f"bam-plugin {__version__}",
        "network_g": section,
        "source_sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
        "source_key": content.key,
    }
    num_in_ch = input_channels(network, section)
    pictures = images(num_in_ch) if verify else ()
    return convert_network(
        network,
        num_in_ch=num_in_ch,
        metadata=metadata,
        images=pictures,
        verify=verify,
        require_graph=require_graph,
    )
