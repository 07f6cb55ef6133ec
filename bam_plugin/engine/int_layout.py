"""Integer convolutions as csrc/tile_int.h wants them: groups of pixels, words of 4 bytes, starting sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bam_plugin.engine.kernels import Isa, layout, padded_channels


def int_stride(channels: int) -> int:
    """Integers per pixel of an integer map with so many channels."""
    return -(-channels // layout().group) * layout().group


def in_bytes(kind: str, isa: Isa) -> bool:
    """Whether values of a kind stand in memory as bytes; other integers take 16 bits."""
    return kind == "int8" and isa.dot_bytes


def group_of(out: int, lanes: int) -> int:
    """Neighbouring pixels of floats that one register of output channels makes at once; 1 where a pixel fills it."""
    return max(1, lanes // out) if out < layout().narrow else 1


@dataclass(frozen=True)
class IntWeights:
    """Arrays of one convolution for one instruction set: words of 4 bytes, and a number per lane."""

    words: np.ndarray
    scale: np.ndarray
    start: np.ndarray
    bias: np.ndarray


def channel_order(channels: int, factor: int) -> np.ndarray:
    """Indices that bring channels from PixelShuffle's order (channel, row, column) into (row, column, channel)."""
    return np.arange(channels).reshape(-1, factor**2).T.ravel()


def lay_out(
    weight: np.ndarray, scale: np.ndarray, bias: np.ndarray, isa: Isa, *, group: int, as_bytes: bool
) -> IntWeights:
    """Repack int16 (O, I, k, k) into consecutive chunks of (k, steps of a row, lanes of the chunk) words.

    A word holds the weights of two neighbouring input channels in 16 bits or of four in 8 bits. The filter of pixel g
    of a group stands g taps further right in a row of k + group - 1 taps.
    """
    out, channels, kernel, _ = weight.shape
    rows = np.zeros((group, out, kernel, kernel + group - 1, int_stride(channels)), dtype=np.int16)
    for g in range(group):
        rows[g, :, :, g : g + kernel, :channels] = weight.transpose(0, 2, 3, 1)
    filters = rows.reshape(group * out, -1).astype(np.int8 if as_bytes else np.int16)
    words = np.ascontiguousarray(filters).view(np.int32)
    blocks = -(-max(len(words), len(padded_channels(scale, isa.lanes))) // isa.lanes)
    table = np.zeros((words.shape[1], blocks * isa.lanes), dtype=np.int32)
    table[:, : len(words)] = words.T
    width = isa.max_vectors * isa.lanes
    chunks = [table[:, at : at + width].ravel() for at in range(0, table.shape[1], width)]
    start = np.zeros(blocks * isa.lanes, dtype=np.int32)
    if as_bytes:
        start[: len(words)] = -layout().byte_zero * filters.sum(axis=1, dtype=np.int64)
    return IntWeights(
        words=np.concatenate(chunks),
        scale=padded_channels(np.tile(scale, group), isa.lanes),
        start=start,
        bias=padded_channels(np.tile(bias, group), isa.lanes),
    )
