"""ONNX models of packed networks: ONNX Runtime computes what PyTorch and the packed engine compute, at any size."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from helpers.mixed_hosts import section
from helpers.networks import SMALL_BSRN, enliven
from helpers.packed_models import (
    every_operation,
    random_filters,
    random_floats,
    small_model,
)

from bam_plugin.cli import main
from bam_plugin.conversion.converter import convert_network
from bam_plugin.conversion.delivery import export_network
from bam_plugin.conversion.onnx_export import export_onnx, observed_runner, onnx_runner
from bam_plugin.conversion.verify import compare_runs, default_images
from bam_plugin.engine import Engine
from bam_plugin.nn import METHODS
from bam_plugin.packed import PackedModel
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.graph_builder import GraphBuilder
from bam_plugin.toolbox.networks import build_network

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZES = ((11, 14), (7, 9), (1, 5), (1, 1))


def test_every_operation_at_odd_sizes():
    model = every_operation()
    run, engine = onnx_runner(export_onnx(model), threads=1), Engine(model)
    for size in SIZES:
        image = np.random.default_rng(1).random((*size, 3), dtype=np.float32)
        expected = engine.run(image)
        assert np.abs(run(image) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("alphabet", ["-1,+1", "0,1"])
def test_ties_and_padding_are_exact(alphabet):
    """Inputs that lie on their thresholds, and pixels at the border: equal to the last bit, dot products of 0 included.

    A runtime that multiplied the scales into the filters would round otherwise.
    """
    generator = np.random.default_rng(5)
    builder = GraphBuilder(num_in_ch=3)
    threshold = np.array([0.5, 0.0, 0.25], dtype=np.float32)
    tensors = {"threshold": threshold, "flip": np.array([0, 1, 0], dtype=np.uint8)}
    signs = builder.add("threshold", "sign", builder.input, tensors=tensors)
    tensors = {"weight": random_filters(generator, 16, 3, 3), "scale": 0.05 * random_floats(generator, 16)}
    output = builder.add("binary_conv2d", "conv", signs, attrs={"kernel": 3, "alphabet": alphabet}, tensors=tensors)
    model = PackedModel(graph=builder.finish(output), tensors=builder.tensors)
    image = generator.choice(np.array([0, 0.25, 0.5, 1], dtype=np.float32), size=(6, 7, 3))
    assert all((image == threshold).any(axis=(0, 1)))
    assert np.array_equal(onnx_runner(export_onnx(model), threads=1)(image), Engine(model).run(image))


@pytest.mark.parametrize("binarizer", sorted(METHODS))
def test_every_binarizer_equals_pytorch(binarizer):
    network = enliven(build_network({"type": "SRResNet", "num_feat": 8, "num_block": 1, "upscale": 3} | {
        "binarizer": binarizer
    })).eval()  # fmt: skip
    conversion = convert_network(network)
    seen = compare_runs(network, observed_runner(conversion.model), default_images(3))
    assert seen.agreement >= 0.9999 and seen.flips.keys() == conversion.comparison.flips.keys()
    run = onnx_runner(export_onnx(conversion.model), threads=1)
    for size in SIZES:
        image = np.random.default_rng(2).random((*size, 3), dtype=np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
        assert np.mean(np.abs(run(image) - expected) > 1e-4 * np.abs(expected).max()) < 1e-3


def test_bytes_are_the_same_for_the_same_network():
    assert export_onnx(small_model()) == export_onnx(small_model()) != export_onnx(small_model(seed=1))


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(
        {"params": enliven(build_network(SMALL_BSRN)).state_dict(), "network_g": SMALL_BSRN}, tmp_path / "net.pth"
    )
    return tmp_path / "net.pth"


def test_command_writes_a_checked_onnx_file(checkpoint, tmp_path, capsys):
    packed, onnx, report = tmp_path / "a.bam.safetensors", tmp_path / "a.onnx", tmp_path / "report.json"
    arguments = ["convert", str(checkpoint), "-o", str(packed), "--onnx", str(onnx), "--report", str(report)]
    assert main([*arguments, "--onnx", str(packed)]) == 2  # the one file would take the other's place
    assert "a name of its own" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "the ONNX model compared with PyTorch on 5 images" in capsys.readouterr().out
    assert json.loads(report.read_text())["onnx"]["comparison"]["agreement"] > 0.9999
    assert onnx_runner(onnx.read_bytes())(np.zeros((5, 3, 3), np.float32)).shape == (20, 12, 3)
    packed.unlink()
    report.unlink()
    assert main(arguments) == 2 and "a.onnx exists" in capsys.readouterr().err


def test_a_missing_package_is_named(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what Python does for a package that cannot be imported
    arguments = ["convert", str(checkpoint), "-o", str(tmp_path / "a.st"), "--onnx", str(tmp_path / "a.onnx")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "onnxruntime" in error and "bam-plugin[onnx]" in error
    assert not (tmp_path / "a.st").exists()
    assert main([*arguments, "--no-verify"]) == 0  # writing alone needs onnx only


def test_a_mixed_network_is_exported_by_pytorch(tmp_path, capsys):
    options = section("RCAN")
    torch.manual_seed(7)
    network = enliven(build_network(options)).eval()
    torch.save({"params": network.state_dict(), "network_g": options}, tmp_path / "net.pth")
    arguments = ["convert", str(tmp_path / "net.pth"), "-o", str(tmp_path / "a.st"), "--onnx", str(tmp_path / "a.onnx")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "so this is a mixed file" in out and "the ONNX model compared with PyTorch on 5 images" in out
    image = np.random.default_rng(0).random((13, 10, 3), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(onnx_runner((tmp_path / "a.onnx").read_bytes())(image) - expected).max() < 1e-5
    with pytest.raises(ConversionError, match="leave out"):
        export_network(torch.nn.AdaptiveAvgPool2d((7, 5)), num_in_ch=3, edge=16)
