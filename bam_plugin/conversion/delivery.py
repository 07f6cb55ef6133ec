"""Write the files of a training checkpoint: a packed file, and an ONNX model on request. Both are compared first."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bam_plugin.conversion import onnx_export
from bam_plugin.conversion.converter import Conversion, convert_checkpoint
from bam_plugin.conversion.verify import Comparison, compare_runs, default_images, fitted_images
from bam_plugin.errors import BamError
from bam_plugin.files import atomic_path
from bam_plugin.mixed.mixed_network import sizes_of
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.format import PackedModel
from bam_plugin.pictures.bgr import network_input
from bam_plugin.pictures.errors import PictureError
from bam_plugin.pictures.read import read_picture

MIN_AGREEMENT = 0.9999


class ConvertError(BamError):
    """The arguments of a conversion are wrong."""


class DisagreementError(BamError):
    """A converted network computes something else than PyTorch. `delivery` has the comparison."""

    exit_code = 1

    def __init__(self, message: str, delivery: Delivery) -> None:
        super().__init__(message)
        self.delivery = delivery


@dataclass(frozen=True)
class Delivery:
    """A conversion, and the bytes and the comparison of its ONNX model on request."""

    conversion: Conversion
    onnx: bytes = b""
    onnx_comparison: Comparison | None = None

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Name of what was compared with PyTorch -> the comparison."""
        found = {"the packed network": self.conversion.comparison, "the ONNX model": self.onnx_comparison}
        return {what: comparison for what, comparison in found.items() if comparison is not None}


def convert(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    options: str | os.PathLike | None = None,
    method: str | None = None,
    param_key: str | None = None,
    facts: Mapping[str, Any] | None = None,
    images: Sequence[str | os.PathLike] = (),
    verify: bool = True,
    min_agreement: float = MIN_AGREEMENT,
    onnx: str | os.PathLike | None = None,
    require_graph: bool = False,
    overwrite: bool = False,
    write: bool = True,
) -> Delivery:
    """Convert a training checkpoint to the packed file `output`, after a comparison of the two.

    checkpoint: such as `net_g_latest.pth`. options, method: the option file of its training and the method that it
    used; by default the network is the one that the checkpoint records. param_key: weights to take (`params_ema`, else
    `params`). facts: facts to record in the file. images: pictures of the comparison besides the fixed ones.
    min_agreement: the smallest share that must agree with PyTorch, of each layer's signs from equal inputs, and of
    8-bit values, which may differ by 1. onnx: write the network in float arithmetic as ONNX there, too (extra `onnx`).
    require_graph: refuse a network that only runs in torch. overwrite: replace files that exist. write: False only
    converts and compares.

    Raises ConvertError for wrong arguments, ConversionError for a network that cannot be packed, and DisagreementError.
    Then nothing is written.
    """
    if not 0 <= min_agreement <= 1:
        raise ConvertError(f"--min-agreement takes a share from 0 to 1, found {min_agreement}")
    for path in (output, onnx):
        if path is not None and write and not overwrite and Path(path).exists():
            raise ConvertError(f"{path} exists; choose another name or give --force")
    if onnx is not None:
        for package in ("onnx", "onnxruntime")[: 1 + verify]:
            onnx_export.require(package)  # before the work, not after

    def pictures(channels: int) -> list[np.ndarray]:
        return default_images(channels) + [_read_image(Path(path), channels) for path in images]

    conversion = convert_checkpoint(
        checkpoint,
        options,
        method=method,
        param_key=param_key,
        facts=facts,
        images=pictures,
        verify=verify,
        require_graph=require_graph,
    )
    delivery = _with_onnx(conversion, pictures if verify else None) if onnx is not None else Delivery(conversion)
    _check_agreement(delivery, min_agreement)
    if write:
        _write(output, conversion.data)
        if onnx is not None:
            _write(onnx, delivery.onnx)
    return delivery


def export_network(network: nn.Module, *, num_in_ch: int, edge: int) -> bytes:
    """A torch network as PyTorch exports it, with inputs and outputs as in `export_onnx`: signs are floats.

    `edge` is a height and width that the network takes. Raises ConversionError for a network that PyTorch cannot
    export, MissingDependencyError without the package onnx.
    """
    onnx_export.require("onnx")
    content = io.BytesIO()
    names = (onnx_export.IMAGE, onnx_export.RESULT)
    training = network.training
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that become constants: the comparison tries several sizes
            torch.onnx.export(
                network.eval(),
                (torch.zeros(1, num_in_ch, edge, edge),),
                content,  # type: ignore[arg-type]
                dynamo=False,  # that exporter needs the package onnxscript
                opset_version=onnx_export.OPSET,
                input_names=names[:1],
                output_names=names[1:],
                dynamic_axes={name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in names},
            )
    except Exception as error:  # whatever PyTorch raises at an operation that it cannot export
        raise ConversionError(
            f"PyTorch cannot export {type(network).__name__} as ONNX ({type(error).__name__}: {error}): leave out "
            "--onnx"
        ) from error
    finally:
        network.train(training)
    return content.getvalue()


def _with_onnx(conversion: Conversion, pictures: Callable[[int], Iterable[np.ndarray]] | None) -> Delivery:
    """A graph is exported node by node; of a mixed network, torch exports the host in float arithmetic."""
    model, network = conversion.model, conversion.network
    if isinstance(model, PackedModel):
        data = onnx_export.export_onnx(model)
    else:
        data = export_network(network, num_in_ch=model.num_in_ch, edge=sizes_of(model).fit(16))
    if pictures is None:
        return Delivery(conversion, data)
    run = onnx_export.onnx_runner(data)
    images = fitted_images(model, pictures(model.num_in_ch))
    if isinstance(model, PackedModel):
        comparison = compare_runs(network, onnx_export.observed_runner(model), images, run_alone=run)
    else:
        comparison = compare_runs(network, lambda image: (run(image), {}), images)
    return Delivery(conversion, data, comparison)


def _check_agreement(delivery: Delivery, least: float) -> None:
    low = {what: found.agreement for what, found in delivery.comparisons.items() if not found.agreement >= least}
    if low:
        found = "; ".join(f"{what} agrees with PyTorch in a share of {share:.6f}" for what, share in low.items())
        raise DisagreementError(
            f"{found} of values or of a layer's signs, less than --min-agreement {least:g}: nothing written. From the "
            "same signs, rounding changes a few of a million; more is a fault of the conversion: please report it with "
            "the layer where most signs flipped (--report FILE has all of them)",
            delivery,
        )


def _read_image(path: Path, channels: int) -> np.ndarray:
    if channels not in (1, 3):
        raise ConvertError(f"--images: pictures have 1 or 3 channels, the network takes {channels}")
    try:
        return network_input(read_picture(path), channels)
    except PictureError as error:
        raise ConvertError(f"--images: {error}") from None


def _write(path: str | os.PathLike, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
