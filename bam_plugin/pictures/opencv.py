"""OpenCV from any of its packages: `opencv-python`, or `opencv-python-headless` on a server.

The first one needs libraries of the window system, which servers and containers often lack. The second one does not,
and it suffices for this package.
"""

from __future__ import annotations

from bam_plugin.errors import MissingDependencyError

try:
    import cv2
except ImportError as error:
    raise MissingDependencyError(
        f"OpenCV cannot be loaded ({error}). Either install what it lacks (Debian and Ubuntu: apt-get install libgl1 "
        "libglib2.0-0), or take the package that needs no window system: pip uninstall -y opencv-python && "
        "pip install opencv-python-headless"
    ) from error

__all__ = ["cv2"]
