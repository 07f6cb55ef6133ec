"""How a packed network runs fast: compiled kernels, programs of tile operations, and `Engine`. No torch.

engine.py: `Engine`, one network ready to run. opening.py: the engine for any file. kernels.py and csrc/: the C library.
fusion.py, tile_stages.py, parameters.py, program.py: from a graph to the operations that C runs. blas.py: the same
without compiled kernels. timing.py: how long parts take.
"""

from bam_plugin.engine.engine import Engine

__all__ = ["Engine"]
