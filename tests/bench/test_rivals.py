"""Rivals of `bam bench`: each computes what the engine computes, on small networks (how fast is no test)."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from helpers.packed_models import binary_layer, every_operation, float_layer, small_model

from bam_plugin.bench.rivals import RIVALS, Rival, RivalError, choose, difference
from bam_plugin.bench.segments import Workload, cut, make_workload
from bam_plugin.cli import main
from bam_plugin.packed import PackedModel, write_packed
from bam_plugin.packed.graph import INPUT
from bam_plugin.packed.graph_builder import GraphBuilder

COMPILED = [name for name in RIVALS if "compiled" in name]
EXACT = [name for name in RIVALS if "fp32" in name and name not in COMPILED]
ROUGH = [name for name in RIVALS if name not in EXACT and name not in COMPILED]


def workload_of(model: PackedModel, *, size: tuple[int, int] = (19, 23)) -> Workload:
    image = np.random.default_rng(0).random((*size, model.num_in_ch), dtype=np.float32)
    return make_workload(model, image, threads=1)


def needed(name: str) -> Rival:
    missing = RIVALS[name].available()
    if missing is not None:
        pytest.skip(missing)
    return RIVALS[name]


@pytest.fixture(scope="module")
def lively() -> Workload:
    return workload_of(small_model(channels=48, blocks=3))


@pytest.fixture(scope="module")
def everything() -> Workload:
    return workload_of(every_operation())


def test_segments_join_to_the_whole(lively):
    parts = cut(lively.model)
    nodes = [node.name for part in ("body", "tail") for node in parts[part].nodes]
    assert sorted(nodes) == sorted(node.name for node in lively.model.graph.nodes)
    assert set(parts["tail"].inputs) == {*parts["body"].outputs, INPUT}
    assert not any(node.op == "binary_conv2d" for node in parts["tail"].nodes)
    builder = GraphBuilder(num_in_ch=3)
    generator = np.random.default_rng(0)
    plain = builder.finish(float_layer(builder, generator, builder.input, "conv", out=3))
    assert set(cut(PackedModel(graph=plain, tensors=builder.tensors))) == {"whole"}


@pytest.mark.parametrize("name", EXACT)
def test_same_result_in_fp32(name, lively):
    """A structural fault (a tie, padding, the order of bits or channels) would change most of the values."""
    rival = needed(name)
    for part in rival.parts:
        assert difference(lively, part, rival.build(lively, part)()) < 1e-3, part


@pytest.mark.parametrize("name", [name for name in EXACT if "binary" not in name])
def test_every_operation(name, everything):
    rival = needed(name)
    for part in rival.parts:
        assert difference(everything, part, rival.build(everything, part)()) < 1e-3, part


@pytest.mark.parametrize("name", ROUGH)
def test_tail_in_low_precision_is_near(name, lively):
    rival = needed(name)
    found = rival.build(lively, "tail")()[0]
    expected = lively.values[lively.model.graph.output]
    assert 0 < np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 0.03
    if "binary" in name:  # the body is exact, so the whole is what the tail is
        (whole,) = rival.build(lively, "whole")()
        assert np.allclose(whole, found, atol=1e-3 * np.abs(expected).max())


def test_compiled_pytorch():
    pytest.importorskip("torch")
    workload = workload_of(small_model(channels=8, blocks=1), size=(8, 9))
    try:
        assert difference(workload, "tail", RIVALS["PyTorch fp32 compiled"].build(workload, "tail")()) < 1e-3
    except RuntimeError as error:
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")


@pytest.mark.parametrize(("channels", "alphabet", "words"), [(12, "-1,+1", "multiple of 8"), (16, "0,1", "0 and 1")])
def test_what_openvino_cannot_do_is_refused(channels, alphabet, words):
    rival = needed("OpenVINO binary body, fp32 tail")
    builder, generator = GraphBuilder(num_in_ch=3), np.random.default_rng(0)
    value = float_layer(builder, generator, builder.input, "head", out=channels)
    value = binary_layer(builder, generator, value, "conv", out=channels, kernel=3, alphabet=alphabet)
    graph = builder.finish(float_layer(builder, generator, value, "tail", out=3))
    workload = workload_of(PackedModel(graph=graph, tensors=builder.tensors))
    with pytest.raises(RivalError, match=words):
        rival.build(workload, "body")


def test_command_compares_measures_and_skips(tmp_path, capsys, monkeypatch):
    path = tmp_path / "small.bam.safetensors"
    write_packed(small_model(channels=12), path)
    absent = Rival("Abacus", "no_such_package", "onnx_rival:build", {})
    monkeypatch.setattr("bam_plugin.bench.rivals.RIVALS", {**RIVALS, "Abacus": absent})
    names = ["Abacus", "PyTorch fp32", "ONNX", "OpenVINO binary body, fp32"]
    arguments = ["bench", str(path), "--size", "16x12", "--rounds", "1", "-j", "1", "--rivals", *names]
    assert main([*arguments, "--json", "--parts", "whole", "body"]) == 0
    facts = json.loads(capsys.readouterr().out)
    lines = "\n".join(facts["skipped"])
    assert "Abacus: no_such_package is not installed" in lines
    if importlib.util.find_spec("openvino"):
        assert "OpenVINO binary body, fp32 tail, body: " in lines and "multiple of 8" in lines
    if importlib.util.find_spec("torch"):
        assert set(facts["timings"]["PyTorch fp32"]) == {"whole", "body"}
        assert facts["differs"]["PyTorch fp32"]["body"] < 1e-3
    if importlib.util.find_spec("onnxruntime"):
        assert facts["timings"]["ONNX Runtime fp32"]["whole"]["1"]["rounds"] == 1


@pytest.mark.parametrize("arguments", [["--size", "²x9"], ["--size", "99999x99999"], ["-j", "0"], ["-j", "1000"]])
def test_command_refuses_what_it_cannot_measure(tmp_path, capsys, arguments):
    path = tmp_path / "small.bam.safetensors"
    write_packed(small_model(), path)
    assert main(["bench", str(path), "--rivals", *arguments]) == 2
    assert "BenchError" in capsys.readouterr().err


def test_command_says_that_there_is_no_tail(tmp_path, capsys):
    builder, generator = GraphBuilder(num_in_ch=3), np.random.default_rng(0)
    value = binary_layer(builder, generator, builder.input, "conv", out=3, kernel=1)
    path = tmp_path / "small.bam.safetensors"
    write_packed(PackedModel(graph=builder.finish(value), tensors=builder.tensors), path)
    assert main(["bench", str(path), "--size", "8x8", "--rounds", "1", "-j", "1", "1", "--rivals", "PyTorch fp32"]) == 0
    shown = capsys.readouterr().out
    assert "Skipped: PyTorch fp32, tail: the network has no tail of its own" in shown and shown.count("whole, 1T") == 1


def test_names_choose_rivals():
    assert [rival.name for rival in choose(["onnx", "OpenVINO BF16"])] == ["ONNX Runtime fp32", "OpenVINO bf16"]
    assert [rival.name for rival in choose(["pytorch FP32"])] == ["PyTorch fp32"]  # not "... compiled", too
    assert choose([]) == [] and choose(None) == list(RIVALS.values())


def test_memory_of_a_rival_is_its_own(tmp_path):
    from bam_plugin.bench.peak_memory import peak_memory

    path = tmp_path / "small.bam.safetensors"
    write_packed(small_model(), path)
    name = next((name for name in ("ONNX Runtime fp32", "PyTorch fp32") if RIVALS[name].available() is None), None)
    if name is None:
        pytest.skip("neither onnxruntime nor torch is installed")
    result = 2 * 100 * 2 * 120 * 3 * 4  # bytes of the picture
    assert result < peak_memory(path, name, threads=1, height=100, width=120) < 100e6
