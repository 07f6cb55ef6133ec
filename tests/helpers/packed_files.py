"""Packed files edited as a forger or an accident would."""

from __future__ import annotations

import json

from safetensors.numpy import load, save

from bam_plugin.packed.container import METADATA_KEY, digest


def header_of(data: bytes) -> dict:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])


def rewrite(data: bytes, *, document=None, tensors=None) -> bytes:
    """The same file with its metadata or tensors edited in place by the given functions; the checksum is left alone."""
    meta = json.loads(header_of(data)["__metadata__"][METADATA_KEY])
    arrays = load(data)
    if document is not None:
        document(meta)
    if tensors is not None:
        tensors(arrays)
    return save(arrays, metadata={METADATA_KEY: json.dumps(meta)})


def resign(data: bytes) -> bytes:
    """Give an edited file the checksum of its content, as a forger would."""
    meta = json.loads(header_of(data)["__metadata__"][METADATA_KEY])
    meta.pop("sha256", None)
    arrays = load(data)
    meta["sha256"] = digest(meta, arrays)
    return save(arrays, metadata={METADATA_KEY: json.dumps(meta)})
