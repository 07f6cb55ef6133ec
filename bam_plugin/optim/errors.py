"""Errors of the options under `train.optim_g` and `train.scheduler`."""

from __future__ import annotations

from bam_plugin.errors import BamError


class OptimizerError(BamError):
    """The options do not make an optimizer, its parameter groups or its schedule."""
