"""The start-up hook that `bam enable` installs: it waits for `import basicsr` and does nothing before.

A .pth file imports this module at the start of every interpreter of the environment, so it imports nothing itself but
what an interpreter has loaded anyway. The work is in `hook.py`, imported when BasicSR's option parser is.
"""

import sys


class _BasicSRFinder:
    """Sees BasicSR's modules on their way in; leaves finding and loading them to the ordinary finders."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "basicsr":
            from bam_plugin.toolbox import compat

            compat.apply()
        elif fullname == "basicsr.utils.options":
            from importlib.machinery import PathFinder

            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.loader is not None:
                spec.loader = _OptionsLoader(spec.loader)  # type: ignore[assignment]
            return spec
        return None


class _OptionsLoader:
    """Loads BasicSR's options module and replaces its parser."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        from bam_plugin.hook import extend_parser

        extend_parser(module)


if not any(isinstance(finder, _BasicSRFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _BasicSRFinder())
