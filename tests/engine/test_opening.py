"""Each kind of packed file finds its engine by name."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from helpers.packed_models import small_model

from bam_plugin.engine import Engine, opening
from bam_plugin.errors import MissingDependencyError
from bam_plugin.packed import PackedModel


class OtherModel(PackedModel):
    kind = "other"


class OtherEngine(Engine):
    pass


def test_a_further_kind_registers_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "ENGINES", dict(opening.ENGINES))
    model = small_model()
    other = OtherModel(model.graph, model.tensors, model.metadata)
    assert type(opening.open_engine(model)) is Engine
    with pytest.raises(KeyError):
        opening.open_engine(other)
    opening.register_engine("other", f"{__name__}:OtherEngine")
    engine = opening.open_engine(other, threads=1)
    assert type(engine) is OtherEngine and engine.threads == 1
    image = np.full((5, 7, 3), 0.5, np.float32)
    assert np.array_equal(engine.run(image), opening.open_engine(model).run(image))
    assert engine.tile_memory().pixels_within(1 << 30, columns=100) > 1


def test_an_engine_that_lacks_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "ENGINES", {"graph": "torch.no_such_part:Engine"})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="graph network, whose float layers run in PyTorch; torch"):
        opening.open_engine(small_model())
