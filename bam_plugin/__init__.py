"""bam_plugin: binary (1-bit) super-resolution as a plugin for BasicSR.

`import bam_plugin` imports neither torch nor basicsr. The public names below are found on first use. In a training
script of BasicSR, or of a project on top of it, this one import is enough: when the script parses an option file of
ours, everything of this package is registered there (`bam_plugin.train.scripts`).
"""

from __future__ import annotations

import importlib

from bam_plugin.toolbox.arrival import await_basicsr

__version__ = "0.1.0"

_PUBLIC = {
    "Upscaler": "bam_plugin.upscale.upscaler",
    "binarize": "bam_plugin.nn.mixing.swap",
    "convert": "bam_plugin.conversion.delivery",
    "convert_network": "bam_plugin.conversion.converter",
    "evaluate": "bam_plugin.data.evaluation",
    "export_onnx": "bam_plugin.conversion.onnx_export",
    "profile": "bam_plugin.conversion.profiling",
    "quantize": "bam_plugin.conversion.quantization",
}
"""Public name -> the module that defines it. No room of the house may have one of these names."""
_ROOMS = (
    *(
        "archs",
        "bench",
        "commands",
        "config",
        "conversion",
        "data",
        "engine",
        "errors",
        "files",
        "mixed",
        "models",
        "nn",
    ),
    *("optim", "packed", "pictures", "serve", "toolbox", "train", "upscale"),
)
__all__ = ["__version__", *_PUBLIC, *_ROOMS]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


await_basicsr()
