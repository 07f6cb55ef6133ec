"""Packaging of bam_plugin; settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "bam_plugin/__init__.py").read_text(), re.MULTILINE).group(1)

# The runtime needs no torch: upscaling with packed files works on these alone.
RUNTIME = ["numpy>=2.0", "opencv-python>=4.8", "pyyaml>=6.0", "safetensors>=0.4.3"]
TRAIN = [
    "basicsr>=1.4.2",
    "torch>=2.2",
    "torchvision>=0.17",
    "lmdb>=1.4",
    "tensorboard>=2.14",
    "tqdm>=4.60",
    "msgspec>=0.18",
]
DEMO = ["scikit-image>=0.22"]
DEV = ["pytest>=7.4", "hypothesis>=6.90", "ruff>=0.6", "pyright>=1.1.350"]

setup(
    name="bam-plugin",
    version=VERSION,
    description="Binary (1-bit) super-resolution for BasicSR: train with bit accumulation, deploy packed bits",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    # The folder of option files is at the top of a checkout and inside the package of a wheel.
    packages=[*find_packages(include=["bam_plugin", "bam_plugin.*"]), "bam_plugin.options"],
    package_dir={"bam_plugin.options": "options"},
    package_data={"bam_plugin": ["zoo/*", "data/*.csv"], "bam_plugin.options": ["**/*.yml"]},
    install_requires=RUNTIME,
    extras_require={"train": TRAIN, "demo": DEMO, "dev": DEV},
    entry_points={"console_scripts": ["bam = bam_plugin.cli:main"]},
)
