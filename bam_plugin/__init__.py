"""bam_plugin: binary (1-bit) super-resolution as a plugin for BasicSR.

`import bam_plugin` imports neither torch nor basicsr. The sub-packages are imported on first use:
`bam_plugin.nn` (the mathematics, torch), `bam_plugin.archs` / `.models` / `.optim` (register in BasicSR's registries),
`bam_plugin.packed` (deployment: NumPy, no torch).
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_SUBMODULES = ("archs", "config", "data", "errors", "models", "nn", "optim", "packed")
__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
