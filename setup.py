"""Packaging of bam_plugin; settings of the tools are in pyproject.toml."""

import importlib.util
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "bam_plugin/__init__.py").read_text(), re.MULTILINE).group(1)

# The runtime needs no torch: upscaling with packed files works on these alone. Pillow reads what OpenCV does not (ICC
# profiles, EXIF, CMYK, palettes), tqdm shows progress.
RUNTIME = [
    "numpy>=2.0",
    "opencv-python>=4.8",
    "pillow>=11",
    "pyyaml>=6.0",
    "safetensors>=0.4.3",
    "tqdm>=4.60",
]
TRAIN = [
    "basicsr>=1.4.2",
    "lmdb>=1.4",
    "msgspec>=0.18",
    "setuptools; python_version >= '3.12'",  # BasicSR imports distutils
    "tensorboard>=2.14",
    "torch>=2.4",
    "torchvision>=0.19",
]
ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]
BENCH = [*ONNX, "openvino>=2024.4"]
DEMO = ["scikit-image>=0.22"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
DEV = ["pytest>=7.4", "hypothesis>=6.90", "ruff>=0.6", "pyright>=1.1.350", "selenium>=4.15", "matplotlib>=3.8"]


def library_build():
    """The module that builds the C libraries, loaded by path: the package itself needs NumPy to be imported."""
    path = HERE / "bam_plugin/engine/csrc/build.py"
    spec = importlib.util.spec_from_file_location("library_build", path)
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
    name="bam-plugin",
    version=VERSION,
    description="Binary (1-bit) super-resolution for BasicSR: train with bit accumulation, deploy packed bits",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["bam_plugin", "bam_plugin.*"]),
    package_data={"bam_plugin": ["zoo/*", "data/*.csv", "conversion/*.png"]},
    ext_modules=list(BUILD.LIBRARIES),
    cmdclass={"build_ext": BUILD.BuildLibraries, "build_py": BuildWithOptions, "bdist_wheel": PlatformWheel},
    install_requires=RUNTIME,
    extras_require={"train": TRAIN, "onnx": ONNX, "bench": BENCH, "demo": DEMO, "docs": DOCS, "dev": DEV},
    entry_points={"console_scripts": ["bam = bam_plugin.cli:main"]},
)
