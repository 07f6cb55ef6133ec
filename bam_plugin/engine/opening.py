"""The engine that runs a packed file, whatever it holds: `Engine` for a graph, `MixedEngine` for a mixed network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bam_plugin.engine.engine import Engine
from bam_plugin.errors import INSTALL_TRAINING, TRAINING_LIBRARIES, MissingDependencyError
from bam_plugin.packed.errors import EngineError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.packed.precision import FLOAT, check_precision

if TYPE_CHECKING:
    from bam_plugin.mixed.mixed_engine import MixedEngine


def open_engine(
    model: PackedModel | MixedModel,
    *,
    isa: str | None = None,
    threads: int | None = None,
    precision: str = FLOAT,
) -> Engine | MixedEngine:
    """Make the model ready to run, with the choices of `Engine`.

    Raises MissingDependencyError for a mixed network where torch is missing, EngineError for a precision that the file
    does not offer.
    """
    if isinstance(model, PackedModel):
        return Engine(model, isa=isa, threads=threads, precision=precision)
    if check_precision(precision) != FLOAT:
        raise EngineError(f"a mixed network offers no precision but {FLOAT}, found {precision!r}")
    try:
        from bam_plugin.mixed.mixed_engine import MixedEngine  # the only road from here to torch

        return MixedEngine(model, isa=isa, threads=threads)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TRAINING_LIBRARIES:
            raise
        raise MissingDependencyError(
            f"this packed file holds a mixed network, whose float layers run in PyTorch ({model.no_graph}); "
            f"{error.name} is not installed; run: {INSTALL_TRAINING}"
        ) from error
