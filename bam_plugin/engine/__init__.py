"""The fast run of a packed network: compiled kernels, programs of tile operations, and `Engine`. No torch.

engine.py: `Engine`, one network ready to run. opening.py: the engine for any file, and what every engine offers.
kernels.py and csrc/: the C library. fusion.py, tile_stages.py, parameters.py, program.py: from a graph to the
operations that C runs. blas.py: the same without compiled kernels. timing.py: the time of parts. tile_memory.py: the
memory of a tile.
"""

from bam_plugin.engine.engine import Engine

__all__ = ["Engine"]
