"""Packed networks: the graph, the exact arithmetic (ops/) and the two file formats. NumPy only.

`read_packed` and `write_packed` handle the file (docs/packed_format.md). `bam_plugin.engine.Engine` runs it.
"""

from __future__ import annotations

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
    "read_model",
    "read_packed",
    "write_packed",
]
