"""Models in BasicSR's sense: a network, its losses and its optimizer, trained, validated and saved.

Importing this package applies the repairs of `bam_plugin.toolbox.compat` and registers every `*_model.py` in BasicSR's
MODEL_REGISTRY, and this package's datasets and metrics.
"""

from __future__ import annotations

from bam_plugin import data
from bam_plugin.toolbox import compat

compat.repair_pipelines()
compat.import_registered(__name__, "_model")
data.register()
