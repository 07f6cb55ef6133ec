"""The engine for any packed file.

Each kind of packed file has its engine, whose place is in `ENGINES`. It is imported when a file of that kind is opened,
so a graph never imports modules for mixed networks. A new kind calls `register_engine`.
"""

from __future__ import annotations

import importlib
from typing import Protocol

import numpy as np

from bam_plugin.engine.tile_memory import TileMemory
from bam_plugin.errors import TRAINING_LIBRARIES, MissingDependencyError, install_command
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.packed.precision import FLOAT

ENGINES: dict[str, str] = {
    "graph": "bam_plugin.engine.engine:Engine",
    "mixed": "bam_plugin.mixed.mixed_engine:MixedEngine",
}
"""Kind of a packed file -> `module:class` of its engine. The class takes the arguments of `open_engine`."""


class AnyEngine(Protocol):
    """A network ready to run, by an engine of any kind."""

    isa: str
    """Instruction set of the binary layers."""
    threads: int
    """Threads that it uses."""

    def run(self, image: np.ndarray) -> np.ndarray:
        """Upscale one image: float32 (H, W, C) -> float32 (H * scale, W * scale, C_out), not clipped."""
        ...

    def tile_memory(self) -> TileMemory:
        """The memory of a tile, estimated from above."""
        ...


def register_engine(kind: str, place: str) -> None:
    """Let the engine class `place` (`module:class`) run models whose `kind` is that name."""
    ENGINES[kind] = place


def open_engine(
    model: PackedModel | MixedModel,
    *,
    isa: str | None = None,
    threads: int | None = None,
    precision: str = FLOAT,
) -> AnyEngine:
    """Make the model ready to run, with the choices of `Engine`.

    Raises MissingDependencyError if the engine needs a missing library (a mixed network needs torch),
    EngineError for a precision that the file does not offer.
    """
    module, _, name = ENGINES[model.kind].partition(":")
    try:
        return getattr(importlib.import_module(module), name)(model, isa=isa, threads=threads, precision=precision)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TRAINING_LIBRARIES:
            raise
        why = f" ({model.no_graph})" if isinstance(model, MixedModel) else ""
        raise MissingDependencyError(
            f"this packed file holds a {model.kind} network, whose float layers run in PyTorch{why}; {error.name} is "
            f"not installed; run: {install_command('train')}"
        ) from error
