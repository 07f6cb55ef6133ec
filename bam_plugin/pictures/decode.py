"""Pixels of an opened picture file in one of four forms: grey or RGB, with or without alpha, 8 or 16 bits or float.

Pillow decodes 8 bits and float, and OpenCV decodes 16 bits a channel, which Pillow can do only for grey. The header
decides which of the two, and the values never do.
"""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image, ImageCms, ImageFile

from bam_plugin.pictures.errors import UnsupportedPictureError
from bam_plugin.pictures.formats import WHITE_16, format_of
from bam_plugin.pictures.opencv import cv2


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture has an alpha channel, a transparent palette entry or a transparent colour."""
    return image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info


def is_deep(image: ImageFile.ImageFile) -> bool:
    """More than 8 bits a channel by the header. Pillow itself reads 16-bit RGB as 8 bits without a word."""
    return image.mode in ("F", "I", "I;16", "I;16B", "I;16L", "I;16N") or format_of(image.format).is_deep(image)


def decode(
    image: Image.Image, content: bytes, *, deep: bool, raw_mode: str, notes: list[str], path: str | os.PathLike
) -> np.ndarray:
    """Pixels (H, W, C) of a loaded `image`; C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.

    `content` is the whole file; `deep` (`is_deep`) and `raw_mode` (of the decoder) were read before loading. Notes on
    conversions are added to `notes`. CMYK becomes sRGB, so its profile no longer applies. Raises
    `UnsupportedPictureError`, and all errors of the decoders at broken data.
    """
    pixels = _deep_pixels(image, content, raw_mode) if deep and image.mode != "F" else None
    return _pixels(image, notes, path) if pixels is None else pixels


def _pixels(image: Image.Image, notes: list[str], path: str | os.PathLike) -> np.ndarray:
    """Pixels of 8-bit and float pictures, (H, W, C)."""
    mode = image.mode
    if mode in ("I", "F"):
        pixels = np.asarray(image)
        if mode == "I" or not (pixels.min() >= 0 and pixels.max() <= 1):
            kind = "32-bit integer" if mode == "I" else "float"
            raise UnsupportedPictureError(
                f"{path}: a {kind} {image.format} has no defined white; float values in [0, 1] or 16-bit integers were "
                f"expected, found {pixels.min():g} to {pixels.max():g}"
            )
        return pixels.astype(np.float32)[:, :, None]
    if mode == "CMYK":
        image = _cmyk_to_rgb(image, notes)
    elif "transparency" in image.info or mode in ("PA", "La", "RGBa"):
        image = image.convert("LA" if mode in ("1", "L", "La") else "RGBA")
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _cmyk_to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if profile := image.info.get("icc_profile"):
        try:
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            notes.append("CMYK converted to sRGB with the embedded profile")
            assert converted is not None  # only with inPlace=True
            return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            notes.append("the embedded CMYK profile is broken")
    notes.append("CMYK converted to RGB without a profile")
    return image.convert("RGB")


def _deep_pixels(image: Image.Image, content: bytes, raw_mode: str) -> np.ndarray | None:
    """Pixels of 16-bit pictures as uint16 (H, W, C); None if OpenCV reads the file in 8 bits after all."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)[:, :, None]
        return grey if "transparency" not in image.info else _keyed_alpha(grey, image.info["transparency"])
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None and image.mode != "I":
        raise ValueError("the 16-bit pixels cannot be decoded")
    if decoded is None or decoded.dtype != np.uint16:
        return None
    if (white := format_of(image.format).white(content)) != WHITE_16:
        decoded = np.rint(np.minimum(decoded, white) * (float(WHITE_16) / white)).astype(np.uint16)
    if decoded.ndim == 2:
        return decoded[:, :, None]
    if decoded.shape[2] == 4 and raw_mode.startswith("LA"):
        return np.ascontiguousarray(decoded[:, :, [0, 3]])
    code = cv2.COLOR_BGRA2RGBA if decoded.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(decoded, code)


def _keyed_alpha(grey: np.ndarray, key: int) -> np.ndarray:
    """Grey with one transparent value (PNG tRNS) as grey + alpha."""
    alpha = np.where(grey == key, 0, 65535).astype(np.uint16)
    return np.concatenate([grey, alpha], axis=2)
