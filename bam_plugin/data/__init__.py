"""Images in, training pairs and benchmark numbers out.

`images` (reading any image file), `storage` and `dataset_writer` (LMDBs and folders that are whole or not there),
`prepare` and `benchmarks` (DIV2K, any folder, the test sets), `overlap` (is a training image in a benchmark?),
`paired_patch_dataset` and `metrics` (registered in BasicSR by `register()`). The import of this package imports neither
torch nor basicsr. It only makes basicsr importable (`bam_plugin.toolbox.compat.apply`).
"""

from __future__ import annotations

import importlib

from bam_plugin.toolbox import compat

compat.apply()


def register() -> None:
    """Register the datasets and metrics of this package in BasicSR. A second call does nothing."""
    for name in ("paired_patch_dataset", "metrics"):
        importlib.import_module(f"{__name__}.{name}")
