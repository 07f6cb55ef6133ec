"""Builds what pyproject.toml cannot describe: the C libraries, the option files in a wheel, and the wheel's tag."""

import importlib.util
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def library_build():
    """The module that builds the C libraries, loaded by path: the package itself needs NumPy to be imported."""
    path = HERE / "bam_plugin/engine/csrc/build.py"
    spec = importlib.util.spec_from_file_location("library_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithOptions(build_py):
    """build_py that carries the option files of the repository's `options/` inside the package."""

    def run(self):
        """Build the package, then copy the files (an editable install finds them in the checkout)."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(HERE / "options", Path(self.build_lib) / "bam_plugin/options", dirs_exist_ok=True)


class PlatformWheel(bdist_wheel):
    """bdist_wheel for any Python of one platform: the libraries are opened by ctypes and know no Python."""

    def get_tag(self):
        """`py3-none-PLATFORM`."""
        return "py3", "none", super().get_tag()[2]


BUILD = library_build()

setup(
    ext_modules=list(BUILD.LIBRARIES),
    cmdclass={"build_ext": BUILD.BuildLibraries, "build_py": BuildWithOptions, "bdist_wheel": PlatformWheel},
)
