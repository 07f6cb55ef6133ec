"""`import bam_plugin` extends BasicSR's option parser, as soon as BasicSR is imported.

So the one line `import bam_plugin` in a train.py of BasicSR, HAT or Real-ESRGAN is enough. This module is loaded with
the package, also without torch. It names the modules that do the work, and imports them when BasicSR is imported.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from typing import Any

_OPTIONS = "basicsr.utils.options"
_REPAIRS = "bam_plugin.toolbox.compat"
_SCRIPTS = "bam_plugin.train.scripts"


def await_basicsr() -> None:
    """Extend BasicSR's option parser, now or as soon as BasicSR is imported in this process. Idempotent."""
    if _OPTIONS in sys.modules:
        _extend(sys.modules[_OPTIONS])
    elif not any(isinstance(finder, _BasicSRFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BasicSRFinder())


class _BasicSRFinder:
    """Sees the imports of BasicSR's modules. The ordinary finders find and load them."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname == "basicsr":
            importlib.import_module(_REPAIRS).apply()
        elif fullname == _OPTIONS:
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.loader is not None:
                spec.loader = _OptionsLoader(spec.loader)  # type: ignore[assignment]
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            return spec
        return None


class _OptionsLoader:
    """Loads BasicSR's options module and extends its parser."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        _extend(module)


def _extend(options: Any) -> None:
    """Replace `parse_options` in the module basicsr.utils.options, and in all modules that have imported it by name."""
    original = options.parse_options
    if hasattr(original, "__wrapped__"):
        return

    def parse_options(root_path: str, is_train: bool = True) -> Any:
        return importlib.import_module(_SCRIPTS).parse_with_bam(original, root_path, is_train)

    parse_options.__wrapped__ = original  # type: ignore[attr-defined]
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("parse_options") is original:
            module.parse_options = parse_options  # type: ignore[attr-defined]
