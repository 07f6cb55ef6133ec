"""The door to the compiled kernels: it loads the library, mirrors its structs, repacks weights and checks arguments.

The C side (`csrc/bam.h`) trusts its callers; every array reaches it through the functions here and in `program.py`,
which fix dtype, shape and contiguity. Calls go through ctypes, which releases the interpreter lock.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_uint8, c_uint64, c_void_p
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from bam_plugin.packed.bits import unpack_filters
from bam_plugin.packed.errors import EngineError
from bam_plugin.packed.ops import MAX_KERNEL

_log = logging.getLogger(__name__)
ABI_VERSION = 5


@dataclass(frozen=True)
class Layout:
    """The numbers that the kernels share with Python. csrc/bam.h has their meaning."""

    group: int
    narrow: int
    max_kernel: int
    max_tile: int
    max_patch: int
    max_threads: int
    byte_zero: int
    slack_pixels: int
    float_slack: int


class _Checked(ctypes.Structure):
    """A struct that refuses integers that do not fit. ctypes would cut them silently."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if isinstance(value, int) and getattr(self, name) not in (value, None):
            raise EngineError(
                f"{type(self).__name__}.{name}: {value} does not fit; the picture or network is too large"
            )


class Map(_Checked):
    """bam_map"""

    _fields_ = [
        ("data", c_void_p),
        ("zeros", c_void_p),
        ("row_stride", c_int64),
        ("pixel_stride", c_int64),
        ("row0", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("pad", c_int32),
    ]


class Ref(_Checked):
    """bam_ref: in a map (map >= 0), in scratch memory (-1) or nowhere (-2)."""

    _fields_ = [("offset", c_int64), ("map", c_int32)]


class Op(_Checked):
    """bam_op"""

    _fields_ = [
        *((name, c_int32) for name in ("code", "in_channels", "out_channels", "kernel")),
        *((name, Ref) for name in ("in0", "in1", "out0", "out1")),
        *((name, c_float) for name in ("f0", "f1", "f2")),
        *((name, c_int32) for name in ("i0", "i1", "i2")),
        *((f"p{index}", c_void_p) for index in range(7)),
    ]


class Stage(_Checked):
    """bam_stage"""

    _fields_ = [
        ("ops", POINTER(Op)),
        *((name, c_int32) for name in ("op_count", "width", "row_begin", "row_end", "tile")),
    ]


@dataclass(frozen=True)
class Isa:
    """One instruction set of the library. `lanes` and `max_vectors` fix the layout of repacked weights.

    `dot_bytes`: 8-bit integers are stored in bytes; else in 16 bits.
    """

    name: str
    index: int
    lanes: int
    max_vectors: int
    dot_bytes: bool = False


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library, or None if it was not built or does not fit this version of the package."""
    for path in sorted(Path(__file__).parent.glob("_kernels*")):
        if path.suffix not in (".so", ".pyd", ".dll", ".dylib"):
            continue
        try:
            library = ctypes.CDLL(str(path))
            if library.bam_abi_version() != ABI_VERSION:
                raise OSError(f"ABI version {library.bam_abi_version()}, expected {ABI_VERSION}")
            sizes = [library.bam_sizeof(kind) for kind in range(3)]
            if sizes != [ctypes.sizeof(kind) for kind in (Map, Op, Stage)]:
                raise OSError(f"struct sizes {sizes} differ")
        except (OSError, AttributeError) as error:
            _log.warning("%s: cannot be used (%s); install the package again to rebuild it", path, error)
            continue
        library.bam_isa_name.restype = library.bam_operation_name.restype = c_char_p
        library.bam_number.argtypes = [c_char_p]
        library.bam_count_steps.argtypes = [c_int, c_int64, c_uint64]
        library.bam_count_steps.restype = c_uint64
        library.bam_run.argtypes = [c_int, POINTER(Stage), c_int, POINTER(Map), POINTER(c_uint8), c_int64, c_int]
        return library
    return None


def _loaded() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise EngineError("the compiled kernels are not installed; install a C compiler and then bam_plugin again")
    return library


@functools.cache
def layout() -> Layout:
    """The numbers of the library. Raises EngineError if it is missing."""
    library = _loaded()
    found = {field.name: library.bam_number(field.name.encode()) for field in fields(Layout)}
    if min(found.values()) < 0 or found["max_kernel"] < MAX_KERNEL:
        raise EngineError(f"the compiled kernels do not fit this version of bam_plugin ({found}); install it again")
    return Layout(**found)


@functools.cache
def operation_codes() -> Mapping[str, int]:
    """The operations that the kernels have, by name: their codes. Raises EngineError where the library is missing."""
    library, codes = _loaded(), {}
    while (name := library.bam_operation_name(len(codes))) is not None:
        codes[name.decode()] = len(codes)
    return codes


@functools.cache
def compiled_isas() -> dict[str, Isa]:
    """The compiled instruction sets that this processor can run, fastest first; empty without the library."""
    library = _library()
    if library is None:
        return {}
    found = {}
    for index in range(library.bam_isa_count()):
        if library.bam_isa_supported(index):
            name = library.bam_isa_name(index).decode()
            facts = library.bam_isa_lanes(index), library.bam_isa_max_vectors(index)
            found[name] = Isa(name, index, *facts, bool(library.bam_isa_dot_bytes(index)))
    return found


def run_stages(isa: Isa, stages: ctypes.Array, maps: ctypes.Array, scratch: np.ndarray, threads: int) -> None:
    """Run stages in order. `scratch` is uint8 (threads, bytes), 64-byte aligned rows."""
    library = _loaded()
    assert scratch.dtype == np.uint8 and scratch.shape[0] >= threads and scratch.flags.c_contiguous
    pointer = scratch.ctypes.data_as(POINTER(c_uint8))
    if library.bam_run(isa.index, stages, len(stages), maps, pointer, scratch.shape[1], threads):
        raise EngineError("out of memory while starting the kernels")


def count_steps(isa: Isa, steps: int) -> None:
    """Run a number of register steps of xor + popcount + add and nothing else: the bound of binary convolutions."""
    library = _loaded()
    library.bam_count_steps(isa.index, steps, 0x9E3779B97F4A7C15)


def stride_of(channels: int) -> int:
    """Floats per pixel of a float map with so many channels."""
    group = layout().group
    return channels if channels < layout().narrow else -(-channels // group) * group


def _blocks(channels: int, lanes: int) -> int:
    return -(-stride_of(channels) // lanes)


def padded_channels(values: np.ndarray, lanes: int, fill: float = 0) -> np.ndarray:
    """A float32 parameter per channel, padded to whole registers and to whole pixels."""
    size = max(_blocks(len(values), lanes) * lanes, stride_of(len(values)))
    result = np.full(size, fill, dtype=np.float32)
    result[: len(values)] = values
    return result


def patch_words(kernel: int, channels: int) -> int:
    """Words of 64 bits of a gapless patch (csrc/tile_patch.h), an odd number; 0 if kernels read the map instead."""
    words = -(-kernel * kernel * channels // 64) | 1
    return words if kernel > 1 and words <= layout().max_patch else 0


def repack_binary(weight: np.ndarray, kernel: int, channels: int, lanes: int) -> np.ndarray:
    """The file's filters as uint32 words (blocks, steps, lanes), in the order in which csrc/tile_binary.h reads them.

    Without a patch a step is half a word of one tap. With one, each full adder has three steps for the lower halves of
    its words and three for the upper halves, and the last sum has two.
    """
    bits = unpack_filters(weight, kernel, channels).reshape(len(weight), kernel * kernel, channels)
    dense = patch_words(kernel, channels)
    blocks = _blocks(len(bits), lanes)
    if dense:
        padded = np.zeros((blocks * lanes, dense * 64), dtype=bool)
        padded[: len(bits), : bits[0].size] = bits.reshape(len(bits), -1)
    else:
        padded = np.zeros((blocks * lanes, kernel * kernel, -(-channels // 64) * 64), dtype=bool)
        padded[: len(bits), :, :channels] = bits
    halves = np.packbits(padded, axis=-1, bitorder="little").view("<u4").astype(np.uint32)
    halves = halves.reshape(blocks, lanes, -1, 2)
    if dense:
        halves = carry_save(halves)
    return np.ascontiguousarray(halves.reshape(blocks, lanes, -1).transpose(0, 2, 1))


def carry_save(words: np.ndarray) -> np.ndarray:
    """The steps of csrc/tile_patch.h for a pixel's words, for filters: (..., n, 2) halves -> (..., 3 n - 1) steps."""
    queue = [words[..., index, :] for index in range(words.shape[-2])]
    steps = []
    for adder in range(len(queue) // 2):
        a, b, c = queue[3 * adder : 3 * adder + 3]
        queue.append(a ^ b ^ c)
        steps.append(np.stack([a, a ^ b, a ^ c], axis=-1).reshape(*a.shape[:-1], 6))  # lower halves first
    return np.concatenate([*steps, queue[-1]], axis=-1)


def repack_conv(weight: np.ndarray, isa: Isa) -> np.ndarray:
    """(O, I, k, k) as consecutive chunks of (k * k * I, lanes of the chunk), the order in which the kernel reads."""
    out, steps = weight.shape[0], weight[0].size
    blocks = _blocks(out, isa.lanes)
    table = np.zeros((steps, blocks * isa.lanes), dtype=np.float32)
    table[:, :out] = weight.transpose(2, 3, 1, 0).reshape(steps, out)
    width = isa.max_vectors * isa.lanes
    return np.concatenate([table[:, at : at + width].ravel() for at in range(0, table.shape[1], width)])


def repack_depthwise(weight: np.ndarray, lanes: int) -> np.ndarray:
    """(C, 1, k, k) as (k * k, C padded to whole registers)."""
    taps = weight.reshape(len(weight), -1).T
    return np.stack([padded_channels(tap, lanes) for tap in taps])


def border_classes(size: int, kernel: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Class of each position along an axis, and the taps [first, last) that lie inside the map for each class."""
    half = kernel // 2
    at = np.arange(size)
    first, last = np.maximum(0, half - at), np.minimum(kernel, size + half - at)
    pairs, index = np.unique(np.stack([first, last], axis=1), axis=0, return_inverse=True)
    return np.ascontiguousarray(index.reshape(-1), dtype=np.int32), [(int(a), int(b)) for a, b in pairs]


def border_bases(
    weight: np.ndarray,
    kernel: int,
    channels: int,
    lanes: int,
    rows: list[tuple[int, int]],
    columns: list[tuple[int, int]],
    alphabet: str,
) -> np.ndarray:
    """int32 (row classes, column classes, out): dot = base - 2 popcount over all taps, padded taps counted as words 0.

    base = valid taps * C + 2 popcount(filter on padded taps). With the alphabet "0,1" dot = base - popcount, and base =
    valid taps * C + popcount on padded - popcount on valid taps.
    """
    ones = unpack_filters(weight, kernel, channels).sum(axis=-1, dtype=np.int64)
    bases = np.zeros((len(rows), len(columns), _blocks(len(ones), lanes) * lanes), dtype=np.int32)
    for y, (top, bottom) in enumerate(rows):
        for x, (left, right) in enumerate(columns):
            inside = ones[:, top:bottom, left:right].sum(axis=(1, 2))
            outside = ones.sum(axis=(1, 2)) - inside
            valid = (bottom - top) * (right - left) * channels
            plain = valid + 2 * outside
            bases[y, x, : len(ones)] = plain if alphabet == "-1,+1" else valid + outside - inside
    return bases


def flip_words(flip: np.ndarray) -> np.ndarray:
    """The words to XOR with the comparison bits of a pixel, so that bit 1 is negative and padding is 0."""
    padded = np.zeros(-(-len(flip) // 64) * 64, dtype=bool)
    padded[: len(flip)] = flip == 0
    return np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)
