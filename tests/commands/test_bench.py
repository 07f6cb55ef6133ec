"""`bam bench` on a small file: every rival is measured, and the bound counts what the kernels count."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.packed_models import small_model

from bam_plugin.cli import main
from bam_plugin.engine.engine import available_isas
from bam_plugin.engine.kernels import compiled_isas
from bam_plugin.engine.timing import measure, peak_memory, register_steps
from bam_plugin.packed import write_packed


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "small_x2.bam.safetensors"
    write_packed(small_model(channels=16), path)
    return str(path)


def test_bench_prints_a_table_and_json(packed, capsys):
    isas = [isa for isa in available_isas() if isa not in ("portable", "reference")]
    arguments = ["bench", packed, "--size", "24x16", "--rounds", "2", "-j", "1", "2", "--rivals", "--isa", *isas]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "| bam numpy |" in text and "PyTorch" not in text and "processor time" not in text
    assert main([*arguments, "--json", "--cpu-time"]) == 0
    facts = json.loads(capsys.readouterr().out)
    for isa in compiled_isas():
        if isa != "portable":
            assert set(facts["timings"][f"bam {isa}"]) == {"whole", "body", "tail"}
    assert set(facts["timings"]["bam numpy"]["whole"]) == {"1", "2"}
    if compiled_isas():
        assert facts["popcount_bound"]["milliseconds"] > 0
        assert min(facts["memory"].values()) >= 0


def test_peak_memory_is_that_of_the_run_alone(packed):
    # This process has used more than the measured one will.
    assert np.ones(40_000_000).nbytes == 320_000_000
    taken = peak_memory(packed, 200, 240, isa="numpy", threads=1)
    assert 400 * 480 * 3 * 4 < taken < 320_000_000


def test_bad_arguments_are_named(packed, capsys):
    for wrong in (["--size", "big"], ["--rounds", "0"], ["--isa", "mmx"], ["--rivals", "Theano"]):
        assert main(["bench", packed, *wrong]) == 2
    error = capsys.readouterr().err
    assert "320x180" in error and "Theano" in error


def test_register_steps_of_the_small_network():
    # Two LB blocks (3x3 + 1x1 + 1x1) and a residual block (3x3 + 3x3) of 16 channels: one word, two registers a step.
    assert register_steps(small_model(channels=16), 5, 7, 16) == 5 * 7 * 2 * (2 * (9 + 1 + 1) + 2 * 9)


def test_the_clock_can_be_any():
    ticks = iter(range(100))
    result = measure({"a": lambda: next(ticks)}, rounds=3, warm=False, clock=lambda: next(ticks))
    assert result["a"].median == 2000  # a reading, the call's own tick, a reading


def test_rivals_are_called_in_turns():
    calls: list[str] = []
    result = measure({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3)
    assert "".join(calls) == "ab" + "ababab"
    assert result["a"].rounds == 3 and result["a"].low <= result["a"].median <= result["a"].high
