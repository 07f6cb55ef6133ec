"""How a packed network runs fast: compiled kernels, programs of tile operations, and `Engine`. No torch.

engine.py: `Engine`, one network ready to run. opening.py: the engine for any file, and what every engine offers.
kernels.py and csrc/: the C library. fusion.py, tile_stages.py, parameters.py, program.py: from a graph to the
operations that C runs. blas.py: the same without compiled kernels. timing.py: how long parts take. tile_memory.py: how
much memory a tile takes.
"""

from bam_plugin.engine.engine import Engine

__all__ = ["Engine"]
