"""The kind of image that training, testing and sheets use: uint8, (H, W, 3) in OpenCV's order BGR, or (H, W) grey.

One reader reads every file (`pictures.read`). `bam upscale` keeps everything that a picture carries. Here only 8-bit
colour
stays: 16 bits are rounded to 8 (v / 257), alpha is dropped and the stored colours stay, and grey becomes three equal
channels unless the caller keeps it grey. The reader applies EXIF rotation, palettes and CMYK profiles. For PNG, JPEG,
BMP, PPM and TIFF this equals OpenCV's `imread(path, IMREAD_COLOR)` bit for bit, with two
exceptions: CMYK (OpenCV takes a plain formula, the reader the embedded profile) and a TIFF with alpha (OpenCV
multiplies by it).
"""

from __future__ import annotations

import numpy as np

from bam_plugin.pictures.errors import PictureWriteError, UnsupportedPictureError
from bam_plugin.pictures.opencv import cv2
from bam_plugin.pictures.read import Picture

MAX_PIXELS = 1 << 30
"""Pixels of the largest image that is read for training; the files are the user's own. OpenCV has the same limit."""


def to_bgr(picture: Picture, *, keep_grey: bool = False) -> np.ndarray:
    """The pixels as uint8 (H, W, 3) BGR, or (H, W) for a picture of one channel if `keep_grey`.

    Raises `UnsupportedPictureError` for float pixels: the user must choose their rounding.
    """
    pixels = picture.pixels
    if pixels.dtype == np.float32:
        raise UnsupportedPictureError("holds float values: expected 8 or 16 bits a channel, convert it first")
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.shape[2] == 1 and keep_grey:
        return np.ascontiguousarray(pixels[:, :, 0])
    if pixels.shape[2] <= 2:
        return pixels[:, :, :1].repeat(3, axis=2)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGR)


def network_input(picture: Picture, channels: int) -> np.ndarray:
    """The same image as a network of 1 channel (grey, BT.601) or 3 channels (RGB) takes it: float32 (H, W, channels).

    Values are in [0, 1].
    """
    image = to_bgr(picture)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None] if channels == 1 else image[:, :, ::-1]
    return np.ascontiguousarray(image, dtype=np.float32) / np.float32(255)


def encode_png(image: np.ndarray, *, level: int = 1) -> bytes:
    """PNG bytes of an (H, W) or (H, W, 3) BGR uint8 image; level 0..9 trades time for size."""
    done, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])
    if not done:
        raise PictureWriteError(f"OpenCV cannot encode an image of shape {image.shape} as PNG.")
    return content.tobytes()
