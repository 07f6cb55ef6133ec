"""Deployment: packed binary networks without torch.

`read_packed` and `write_packed` handle the file (docs/packed_format.md), `Engine` runs it, `Upscaler` takes pictures.
Nothing here imports torch or basicsr; the conversion from a checkpoint is in `bam_plugin.packed.converter`.
"""

from __future__ import annotations

import importlib

from bam_plugin.packed.engine import Engine
from bam_plugin.packed.errors import (
    ChecksumError,
    ConversionError,
    EngineError,
    InvalidGraphError,
    InvalidLayerError,
    InvalidPrecisionError,
    MissingTensorError,
    MixedFileError,
    NewerVersionError,
    NotPackedError,
    PackedFormatError,
    TensorShapeError,
    TruncatedFileError,
    UnexpectedTensorError,
)
from bam_plugin.packed.format import PackedModel, read_model, read_packed, write_packed
from bam_plugin.packed.mixed_format import MixedModel

__all__ = [
    "ChecksumError",
    "ConversionError",
    "Engine",
    "EngineError",
    "InvalidGraphError",
    "InvalidLayerError",
    "InvalidPrecisionError",
    "MissingTensorError",
    "MixedFileError",
    "MixedModel",
    "NewerVersionError",
    "NotPackedError",
    "PackedFormatError",
    "PackedModel",
    "TensorShapeError",
    "TruncatedFileError",
    "UnexpectedTensorError",
    "Upscaler",
    "read_model",
    "read_packed",
    "write_packed",
]


def __getattr__(name: str):
    # The Upscaler reads pictures with OpenCV, which a program that only runs the engine need not load.
    if name == "Upscaler":
        return importlib.import_module("bam_plugin.packed.upscaler").Upscaler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
