"""The packages that fill BasicSR's registries, by name: they are imported when something is first asked for by name.

So a module that builds networks depends on none of the packages that define them.
"""

from __future__ import annotations

import importlib

from bam_plugin.toolbox import compat

NETWORKS = ["bam_plugin.archs", "basicsr.archs"]
"""Packages that register networks."""
PIPELINE = ["basicsr.data", "basicsr.losses", "basicsr.metrics", "bam_plugin.models", "bam_plugin.optim"]
"""Packages that register what else a training or a test names: datasets, losses, metrics, models, optimizers."""


def register_networks() -> None:
    """Import what registers networks. Raises MissingDependencyError without BasicSR."""
    _import(NETWORKS)


def register_everything() -> None:
    """Import what registers anything that an option file can name. Raises MissingDependencyError without BasicSR."""
    _import([*NETWORKS, *PIPELINE])


def _import(packages: list[str]) -> None:
    compat.require_basicsr()
    for package in packages:
        importlib.import_module(package)
