"""The container of packed files: safetensors with one metadata key, canonical and checksummed.

The document of a file, the compact JSON under that key, describes its content: a graph (`format.py`) or a mixed network
(`mixed_format.py`). Both are written and read here. So equal content gives equal bytes, and every fault of a container
has its own error class.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bam_plugin.packed.errors import ChecksumError, NewerVersionError, NotPackedError, TruncatedFileError

NEWEST_VERSION = 3
METADATA_KEY = "bam"
MAX_DOCUMENT_BYTES = 4 << 20  # an empty list of 3 bytes takes 64 in memory
MAX_HEADER_BYTES = 4 * MAX_DOCUMENT_BYTES
MAX_DEPTH = 32  # of lists and objects in each other
_DTYPES = {"F32": np.dtype("<f4"), "U8": np.dtype("u1"), "I64": np.dtype("<i8")}
_NAMES = {np.dtype("float32"): "F32", np.dtype("uint8"): "U8", np.dtype("int64"): "I64"}


def compact(document: object) -> str:
    """JSON with sorted keys, without spaces, in ASCII. Raises ValueError for NaN and infinity."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _as_read(document: dict) -> dict:
    """The document as a reader finds it: keys are text, tuples are lists."""
    return json.loads(json.dumps(document, allow_nan=False))


def digest(document: dict, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the compact JSON, then name, dtype, shape and bytes of each tensor in order of names."""
    found = hashlib.sha256(compact(_as_read(document)).encode())
    for name in sorted(tensors):
        array = tensors[name]
        found.update(compact([name, _NAMES[array.dtype], list(array.shape)]).encode())
        found.update(_little_endian(array))
    return found.hexdigest()


def _little_endian(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).astype(_DTYPES[_NAMES[array.dtype]], copy=False).tobytes()


def pack_container(document: dict, tensors: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a packed file, with its checksum in the document."""
    document = _as_read(document)
    complete = {**document, "sha256": digest(document, tensors)}
    if len(compact(complete)) > MAX_DOCUMENT_BYTES:
        raise NotPackedError(f"graph and facts take more than the {MAX_DOCUMENT_BYTES} bytes that a reader accepts")
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    # safetensors would write several metadata keys in random order.
    return bytes(save(arrays, metadata={METADATA_KEY: compact(complete)}))


def unpack_container(data: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The document, without its checksum, and the tensors of a packed file whose checksum is right."""
    header = _header(data)
    _check_types(header, _DTYPES)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, OverflowError) as error:
        raise NotPackedError(f"not a valid safetensors file ({error})") from None
    document = _read_document(header)
    if document["format_version"] != 2:
        _check_types(header, ("F32", "U8"))
    stated = document.pop("sha256", None)
    found = digest(document, tensors)
    if stated != found:
        raise ChecksumError(f"content SHA-256 is {found}, the file states {stated!r}; fetch the file again")
    return document, tensors


def check_fields(document: dict, fields: set[str]) -> None:
    """Raise NotPackedError unless the document has exactly these fields (the checksum apart)."""
    if set(document) != fields:
        raise NotPackedError(f"metadata fields {sorted(fields)} expected, found {sorted(document)}")


def _check_types(header: dict, allowed: Collection[str]) -> None:
    names = list(allowed)  # a forged dtype may not be a text, and then no set can look it up
    for name, entry in header.items():
        if name != "__metadata__" and entry.get("dtype") not in names:
            raise NotPackedError(f"tensor {name!r} has dtype {entry.get('dtype')}; only {sorted(allowed)} are allowed")


def _header(data: bytes) -> dict:
    """The header of the container, after checks that tell a short file from a foreign one."""
    if len(data) < 8:
        raise TruncatedFileError(f"{len(data)} bytes are too few for a packed file")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES and data[8:9] == b"{":
        raise NotPackedError(f"a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if length > MAX_HEADER_BYTES or (len(data) > 8 and data[8:9] != b"{"):
        raise NotPackedError("not a safetensors file (no header where one must start)")
    if 8 + length > len(data):
        raise TruncatedFileError(f"header of {length} bytes expected, only {len(data) - 8} bytes follow")
    try:
        header = json.loads(data[8 : 8 + length])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        promised = max([int(end) for end in ends], default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
        raise NotPackedError("the safetensors header is damaged") from None
    if 8 + length + promised > len(data):
        raise TruncatedFileError(f"the header announces {8 + length + promised} bytes, found {len(data)}")
    return header


def _no_constants(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _check_values(document: object) -> None:
    """ValueError for numbers beyond float64, text that is no Unicode, and lists in lists without end."""
    level, depth = [document], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} lists and objects in each other")
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                value.encode()  # UnicodeEncodeError, a ValueError, for half a pair of surrogates
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError("a number beyond the range of float64")
        level = below


def _read_document(header: dict) -> dict:
    metadata = header.get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise NotPackedError(
            f"a safetensors file, but not a packed network (no metadata key {METADATA_KEY!r}); "
            "make one with `bam convert`"
        )
    if len(text) > MAX_DOCUMENT_BYTES:
        raise NotPackedError(f"metadata of {len(text)} characters; at most {MAX_DOCUMENT_BYTES} are allowed")
    try:
        document = json.loads(text, parse_constant=_no_constants)
        _check_values(document)
    except (ValueError, RecursionError) as error:
        raise NotPackedError(f"the metadata is not valid JSON ({error})") from None
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        raise NotPackedError("the metadata has no format version")
    if version > NEWEST_VERSION:
        raise NewerVersionError(
            f"format version {version}, this program reads up to {NEWEST_VERSION}; update bam-plugin"
        )
    if not isinstance(document.get("info"), dict):
        raise NotPackedError("the metadata has no object of facts (info)")
    return document
