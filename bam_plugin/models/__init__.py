"""Models in BasicSR's sense: a network, its losses and its optimizer, trained, validated and saved.

The import of this package applies the repairs of `bam_plugin.toolbox.compat`. It registers every `*_model.py` in
BasicSR's MODEL_REGISTRY, and the datasets and metrics of this package.
"""

from __future__ import annotations

from bam_plugin import data
from bam_plugin.toolbox import compat

compat.repair_pipelines()
compat.import_registered(__name__, "_model")
data.register()
