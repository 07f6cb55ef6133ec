"""Seeds and mutations for feeding broken files to the readers; used by the tests and by benchmarks/fuzz_*.py."""

from __future__ import annotations

import copy
import io
import json
import struct
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from bam_plugin.packed import PackedModel
from bam_plugin.packed.container import METADATA_KEY, digest
from bam_plugin.packed.format import pack_model

_NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(content: bytes, generator: np.random.Generator) -> bytes:
    """Break a file in one to four places: flipped bits, integers at their limits, cut, repeated or moved pieces."""
    data = bytearray(content)
    for _ in range(generator.integers(1, 5)):
        if not data:
            break
        place = int(generator.integers(len(data)))
        # Headers are where readers go wrong: half of all changes hit the first bytes.
        if generator.random() < 0.5:
            place = min(place, int(generator.integers(min(len(data), 128))))
        length = int(generator.integers(1, 33))
        match generator.integers(6):
            case 0:
                data[place] ^= 1 << int(generator.integers(8))
            case 1:
                width = int(generator.choice([1, 2, 4]))
                value = _NUMBERS[generator.integers(len(_NUMBERS))] & (256**width - 1)
                data[place : place + width] = value.to_bytes(width, "big" if generator.random() < 0.5 else "little")
            case 2:
                del data[place:]
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = data[place : place + length]
            case 5:
                data[place : place + length] = generator.bytes(length)
    return bytes(data)


def picture_seeds() -> dict[str, bytes]:
    """Small valid pictures of every format and of the kinds that take their own way through the reader."""
    generator = np.random.default_rng(0)
    rgba = generator.integers(0, 256, (11, 13, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    pictures = {
        "rgb": Image.fromarray(np.ascontiguousarray(rgba[:, :, :3])),
        "rgba": Image.fromarray(rgba),
        "grey": Image.fromarray(np.ascontiguousarray(rgba[:, :, 0])),
    }
    pictures["palette"] = pictures["rgb"].quantize(8)
    pictures["cmyk"] = pictures["rgb"].convert("CMYK")
    kinds = {
        "PNG": ("rgb", "rgba", "grey", "palette"),
        "JPEG": ("rgb", "grey", "cmyk"),
        "WEBP": ("rgb", "rgba"),
        "TIFF": ("rgb", "rgba", "grey", "cmyk"),
        "BMP": ("rgb", "palette"),
        "GIF": ("palette",),
        "PPM": ("rgb", "grey"),
        "AVIF": ("rgb",),
    }
    Image.init()
    seeds = {}
    for format, names in kinds.items():
        for name in names if format in Image.SAVE else ():
            stream = io.BytesIO()
            options = {} if format in ("BMP", "GIF", "PPM") else {"exif": exif}
            pictures[name].save(stream, format, **options)
            seeds[f"{format} {name}"] = stream.getvalue()
    for format in ("GIF", "PNG", "WEBP"):
        stream = io.BytesIO()
        others = [pictures["rgba"].rotate(90 * turn) for turn in (1, 2)]
        pictures["rgba"].save(stream, format, save_all=True, append_images=others, duration=50, loop=2)
        seeds[f"{format} animated"] = stream.getvalue()
    deep = generator.integers(0, 65536, (11, 13, 4), np.uint16)
    for extension, channels in ((".png", 1), (".png", 3), (".png", 4), (".tif", 3), (".ppm", 3)):
        seeds[f"16-bit {extension} {channels}"] = cv2.imencode(extension, deep[:, :, :channels])[1].tobytes()
    return seeds


def edited_models(model: PackedModel, generator: np.random.Generator) -> Iterator[bytes]:
    """Endless packed files whose JSON is changed in one place and whose checksum is made right again.

    Plain mutations stop at the checksum; these reach what lies behind it.
    """
    data = pack_model(model)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    original = json.loads(header["__metadata__"][METADATA_KEY])
    values = [None, -1, 0, 1, 2, 10**9, 10**30, 0.5, True, "", "input", "relu", "conv2d", [], [[]], {}, {"kernel": 3}]
    while True:
        document = copy.deepcopy(original)
        document.pop("sha256")
        _edit(document, values, generator)
        document["sha256"] = digest(document, model.tensors)
        header["__metadata__"][METADATA_KEY] = json.dumps(document, sort_keys=True, separators=(",", ":"))
        packed = json.dumps(header).encode()
        packed += b" " * (-len(packed) % 8)
        yield struct.pack("<Q", len(packed)) + packed + body


def _edit(document: dict, values: list, generator: np.random.Generator) -> None:
    """Walk down to a random place of the JSON and replace, remove, repeat or exchange what is there."""
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        if not keys:
            return
        key = keys[generator.integers(len(keys))]
        if not isinstance(node[key], (dict, list)) or not node[key] or generator.random() < 0.15:
            break
        node = node[key]
    match generator.integers(4):
        case 0 | 1:
            node[key] = copy.deepcopy(values[generator.integers(len(values))])
        case 2:
            del node[key]
        case 3:
            other = keys[generator.integers(len(keys))]
            node[key], node[other] = node[other], node[key]
