"""What can be wrong with a clip, by name."""

from __future__ import annotations

from bam_plugin.errors import BamError


class VideoError(BamError):
    """A clip cannot be upscaled as asked."""


class NoVideoError(VideoError):
    """A file holds no stream of moving pictures."""


class UnknownEncoderError(VideoError):
    """An encoder is not part of the installed FFmpeg libraries, or does not encode video."""


class ContainerError(VideoError):
    """The container of the result cannot hold a stream of the source, or is not known."""


class DamagedFrameError(VideoError):
    """A frame cannot be decoded, and the caller asked to stop at such a frame."""
