"""Images in, training pairs and benchmark numbers out.

`resize` (MATLAB's bicubic), `images` (reading any image file), `storage` (LMDBs and folders that are whole or not
there), `prepare` (DIV2K, any folder, the benchmarks), `overlap` (is a training image in a benchmark?). Importing this
package imports neither torch nor basicsr; the modules that register in BasicSR's registries are imported by
`register()`.
"""

from __future__ import annotations

import importlib

_REGISTERED = ("paired_patch_dataset", "metrics")


def register() -> None:
    """Enter the datasets and metrics of this package in BasicSR's registries; calling it again does nothing."""
    from bam_plugin import _compat

    _compat.apply()
    for name in _REGISTERED:
        importlib.import_module(f"{__name__}.{name}")
