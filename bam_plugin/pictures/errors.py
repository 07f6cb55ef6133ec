"""Named errors of pictures, one class for each fault of a file or an array."""

from __future__ import annotations

from bam_plugin.errors import BamError


class PictureError(BamError):
    """Base of the errors of reading and writing pictures."""


class PictureAccessError(PictureError):
    """The file is missing, is not a file, or may not be read."""


class UnknownPictureError(PictureError):
    """The content has none of the formats that the reader knows."""


class DamagedPictureError(PictureError):
    """The file starts like a picture and is truncated or broken."""


class PictureTooLargeError(PictureError):
    """The picture has more pixels than the stated limit."""


class UnsupportedPictureError(PictureError):
    """The kind of the picture has no defined brightness range or channels."""


class PictureArrayError(PictureError):
    """The shape, data type or range of an array is not that of a picture."""


class PictureWriteError(PictureError):
    """The format cannot hold the enlarged picture."""
