"""Named errors of pictures: one class per way in which a file or an array cannot be used."""

from __future__ import annotations

from bam_plugin.errors import BamError


class PictureError(BamError):
    """A picture cannot be read or written."""


class PictureAccessError(PictureError):
    """The file is not there, is no file, or may not be read."""


class UnknownPictureError(PictureError):
    """The content is of none of the formats read here."""


class DamagedPictureError(PictureError):
    """The file starts like a picture and is truncated or broken."""


class PictureTooLargeError(PictureError):
    """The picture has more pixels than the stated limit."""


class UnsupportedPictureError(PictureError):
    """A picture of a kind that has no defined brightness range or channels here."""


class PictureArrayError(PictureError):
    """An array has a shape, data type or range that is no picture."""


class PictureWriteError(PictureError):
    """The enlarged picture cannot be written as asked."""
