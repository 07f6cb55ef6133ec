"""The networks, registered in BasicSR's ARCH_REGISTRY: importing this package imports every `*_arch.py` beside it."""

from bam_plugin.toolbox.compat import import_registered

import_registered(__name__, "_arch")
