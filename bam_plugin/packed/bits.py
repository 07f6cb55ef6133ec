"""Packed bits in memory: sign maps as 64-bit words, and the filters of the file as booleans.

Bit 1 is -1, bit 0 is +1. Channel i of a pixel is bit i % 64 of word i // 64; padding bits are 0.
"""

from __future__ import annotations

import numpy as np


def words_for(channels: int) -> int:
    """64-bit words of one pixel of a sign map."""
    return (channels + 63) // 64


def bits_to_words(bits: np.ndarray) -> np.ndarray:
    """Boolean (..., C) -> uint64 (..., ceil(C / 64)), channel i at bit i % 64 of word i // 64."""
    channels = bits.shape[-1]
    padded = np.zeros((*bits.shape[:-1], words_for(channels) * 64), dtype=bool)
    padded[..., :channels] = bits
    octets = np.packbits(padded, axis=-1, bitorder="little")
    return octets.view("<u8").astype(np.uint64, copy=False)


def words_to_bits(words: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of `bits_to_words`."""
    octets = np.ascontiguousarray(words.astype("<u8", copy=False)).view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little", count=channels).astype(bool)


def pack_filters(negative: np.ndarray) -> np.ndarray:
    """Boolean (O, kh, kw, C), True where a weight is -1 -> the file's uint8 (O, ceil(kh * kw * C / 8))."""
    return np.packbits(negative.reshape(negative.shape[0], -1), axis=-1, bitorder="little")


def unpack_filters(packed: np.ndarray, kernel: int, channels: int) -> np.ndarray:
    """The file's uint8 filters -> boolean (O, kernel, kernel, C), True where a weight is -1."""
    bits = np.unpackbits(packed, axis=-1, bitorder="little", count=kernel * kernel * channels)
    return bits.astype(bool).reshape(packed.shape[0], kernel, kernel, channels)
