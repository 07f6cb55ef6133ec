"""Named errors of the packed format: one class per way in which a file, a graph or a conversion can be wrong.

All of them are `BamError`s, so the command line turns them into one line and exit code 2. `PackedFormatError` is the
base of all faults of a packed file itself.
"""

from __future__ import annotations

from bam_plugin.errors import BamError


class PackedFormatError(BamError):
    """A packed file does not follow docs/packed_format.md."""


class NotPackedError(PackedFormatError):
    """The file is not a safetensors container, or it lacks the `bam` metadata of a packed network."""


class TruncatedFileError(PackedFormatError):
    """The file ends before the bytes that its own header announces."""


class NewerVersionError(PackedFormatError):
    """The file was written for a later version of the format."""


class InvalidGraphError(PackedFormatError):
    """The graph in the file (or under construction) is inconsistent: unknown op, wrong operand, bad attribute."""


class InvalidLayerError(PackedFormatError):
    """A binary layer of a mixed network is inconsistent, or not one of the network that the file names."""


class MissingTensorError(PackedFormatError):
    """The graph or the network names a tensor that the file does not hold."""


class UnexpectedTensorError(PackedFormatError):
    """The file holds a tensor that neither the graph nor the network names."""


class TensorShapeError(PackedFormatError):
    """A tensor's shape or dtype is not the one that its place in the graph demands."""


class ChecksumError(PackedFormatError):
    """The content does not match the SHA-256 that the file records."""


class UnbuildableNetworkError(PackedFormatError):
    """The options of a mixed file do not build a network."""


class MixedFileError(PackedFormatError):
    """The file holds a mixed network, and a packed graph is needed."""


class InvalidPrecisionError(PackedFormatError):
    """What the file says about a reduced precision (ranges, cost) does not fit its graph or its limits."""


class ConversionError(BamError):
    """A checkpoint, option file or module does not become a packed file."""


class EngineError(BamError):
    """The engine cannot serve this image, instruction set, precision or number of threads."""
