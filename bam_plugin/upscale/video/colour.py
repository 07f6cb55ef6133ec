"""Pixels of a decoded frame as RGB, and back, by the matrix and the range that the clip is tagged with.

A clip without tags is read as players read it: BT.601 below 720 lines, BT.709 from there on, limited range for YUV. Its
result is tagged with the matrix that was used, since the larger picture would be read by another one. swscale converts,
with exact rounding and full chroma resolution. It is off by more than rounding in one case, full range of more than 8
bits: by up to 4 of 1023, measured with FFmpeg 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from av import VideoFrame
from av.codec import Codec
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange, Colorspace, Interpolation

_ACCURATE = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
_HD_LINES = 720  # from here on players read a clip without tags as BT.709
_UNSPECIFIED = 2  # of matrix, primaries and transfer, in ITU-T H.273
# AVColorSpace (ITU-T H.273) -> swscale's name of the matrix; the others have no matrix of swscale's.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}


@dataclass(frozen=True, kw_only=True)
class ColourTags:
    """Numbers of ITU-T H.273 as FFmpeg keeps them: matrix, primaries, transfer; range 1 limited, 2 full, 0 unknown."""

    matrix: int
    primaries: int
    transfer: int
    range: int


def tags_of(frame: VideoFrame) -> ColourTags:
    """The tags of a frame, and for a YUV frame without them those that players assume."""
    tags = ColourTags(
        matrix=int(frame.colorspace),
        primaries=int(frame.color_primaries),
        transfer=int(frame.color_trc),
        range=int(frame.color_range),
    )
    if frame.format.is_rgb:
        return tags
    if tags.matrix not in _MATRICES:
        tags = replace(tags, matrix=1 if frame.height >= _HD_LINES else 6)
    if tags.range not in (1, 2):
        tags = replace(tags, range=2 if frame.format.name.startswith(("yuvj", "gray")) else 1)
    return tags


def is_deep(format: VideoFormat) -> bool:
    """Whether the samples have more than 8 bits."""
    return max(component.bits for component in format.components) > 8


def has_alpha(format: VideoFormat) -> bool:
    """Whether the pixels carry alpha."""
    return any(component.is_alpha for component in format.components)


def to_rgb(frame: VideoFrame, tags: ColourTags) -> np.ndarray:
    """(H, W, 3) RGB over the full range, uint8, or uint16 for deeper samples; (H, W, 4) with alpha."""
    deep, alpha = is_deep(frame.format), has_alpha(frame.format)
    target = ("rgba64le" if alpha else "rgb48le") if deep else ("rgba" if alpha else "rgb24")
    yuv = not frame.format.is_rgb
    return frame.reformat(
        format=target,
        src_colorspace=_MATRICES[tags.matrix] if yuv else None,
        src_color_range=ColorRange(tags.range) if yuv else ColorRange.JPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=_ACCURATE,
    ).to_ndarray()


def from_rgb(pixels: np.ndarray, format: str, tags: ColourTags) -> VideoFrame:
    """A frame of pixel format `format` from RGB or RGBA of the full range, tagged with `tags`."""
    names = {3: ("rgb24", "rgb48le"), 4: ("rgba", "rgba64le")}
    frame = VideoFrame.from_ndarray(pixels, format=names[pixels.shape[2]][pixels.dtype == np.uint16])
    yuv = not VideoFormat(format).is_rgb
    result = frame.reformat(
        format=format,
        dst_colorspace=_MATRICES[tags.matrix] if yuv else None,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange(tags.range) if yuv else ColorRange.JPEG,
        interpolation=_ACCURATE,
    )
    if yuv:
        result.colorspace, result.color_range = tags.matrix, tags.range
    result.color_primaries, result.color_trc = tags.primaries, tags.transfer
    return result


def choose_format(source: VideoFormat, codec: Codec) -> str:
    """The pixel format to encode in: the source's own where `codec` takes it, else the nearest that loses least.

    Depth counts most, then the resolution of chroma, then alpha. Formats with more than the source has are taken only
    where none fits, the smallest first.
    """
    name = source.name.replace("yuvj", "yuv")  # FFmpeg's old names of full range; the tag says it
    offered = [format.name for format in codec.video_formats or ()]
    if not offered or name in offered:
        return name
    wanted = _features(name)

    def loss(candidate: str) -> tuple[int, int]:
        found = _features(candidate)
        weights = (100, 10, 10, 1, 1)  # bits, chroma across, chroma down, alpha, YUV for YUV
        lost = sum(weight * max(0, want - have) for weight, want, have in zip(weights, wanted, found, strict=True))
        extra = sum(weight * max(0, have - want) for weight, want, have in zip(weights, wanted, found, strict=True))
        return lost, extra

    plain = [each for each in offered if _can_convert(each)]
    return min(plain, key=loss)


def _features(name: str) -> tuple[int, int, int, int, int]:
    """(bits of a sample, 2 or 1 for chroma of full or less width, the same for height, alpha, YUV)."""
    format = VideoFormat(name, 64, 64)
    bits = max(component.bits for component in format.components)
    if format.is_rgb or len(format.components) < 3:
        across = down = 2
    else:
        chroma = next(component for component in format.components if component.is_chroma)
        across, down = (2 if size == 64 else 1 for size in (chroma.width, chroma.height))
    return bits, across, down, int(has_alpha(format)), int(not format.is_rgb)


def _can_convert(name: str) -> bool:
    """Whether the format is one of plain planes or packed pixels, no surface of some device."""
    format = VideoFormat(name)
    return bool(format.components) and not format.is_bit_stream and not format.has_palette
