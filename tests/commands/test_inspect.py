"""`bam inspect`: its numbers are the file's, and a changed file is not described but refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.upscale_models import tiny_model

from bam_plugin.cli import main
from bam_plugin.packed import PackedModel, write_packed


@pytest.fixture
def packed(tmp_path):
    model = tiny_model(features=16)
    info = {
        "network_g": {"type": "Tiny"},
        "metrics": {"Set5": {"psnr": 30.12, "ssim": 0.86}},
        "source_sha256": "ab" * 32,
        "training": ["T91", "BSDS400"],
        "terms": "research only",
    }
    path = tmp_path / "tiny_x4.bam.safetensors"
    write_packed(PackedModel(graph=model.graph, tensors=model.tensors, metadata=info), path)
    return path


def test_json_adds_up(packed, capsys):
    assert main(["inspect", str(packed), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["checksum"] == "verified" and len(facts["sha256"]) == 64
    assert (facts["network"], facts["scale"], facts["channels"], facts["receptive_radius"]) == ("Tiny", 4, [3, 3], 3)
    by_name = {layer["name"]: layer for layer in facts["layers"]}
    body = by_name["body"]
    assert (body["weights"], body["bits_per_weight"], body["kernel"], body["channels"]) == (16 * 16 * 9, 1, 3, [16, 16])
    assert body["bytes"] == 16 * 16 * 9 // 8 + 16 * 4
    assert by_name["head"]["bytes"] == 3 * 16 * 9 * 4
    assert facts["binary"] == {"weights": 16 * 16 * 9, "bytes": 16 * 16 * 9 // 8}
    assert facts["bytes"]["file"] == packed.stat().st_size
    assert facts["bytes"]["tensors"] + facts["bytes"]["graph_and_facts"] == facts["bytes"]["file"]
    # Thresholds and flips belong to no convolution; with them the layers make up all tensors.
    assert sum(layer["bytes"] for layer in facts["layers"]) + 16 * 4 + 16 == facts["bytes"]["tensors"]
    assert facts["metrics"]["Set5"]["psnr"] == 30.12
    assert facts["origin"] == {"source_sha256": "ab" * 32, "training": ["T91", "BSDS400"], "terms": "research only"}


def test_the_table_says_the_same_to_a_person(packed, capsys):
    assert main(["inspect", str(packed)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "body binary conv 3x3 16 -> 16 2,304 1 352",
        "x4, 3 channels in, 3 out",
        "3 input pixels",
        "Set5: psnr 30.12, ssim 0.86",
        "T91, BSDS400",
        "research only",
        "(verified)",
    ):
        assert words in shown


def test_a_file_without_recorded_facts_is_described_too(tmp_path, capsys):
    path = tmp_path / "bare_x4.bam.safetensors"
    write_packed(tiny_model(), path)
    assert main(["inspect", str(path)]) == 0
    assert "not recorded" in capsys.readouterr().out


def test_a_changed_file_is_refused(packed, capsys):
    content = bytearray(packed.read_bytes())
    content[-np.random.default_rng(0).integers(1, 4000)] ^= 1
    packed.write_bytes(content)
    assert main(["inspect", str(packed)]) == 2
    shown = capsys.readouterr()
    assert "ChecksumError" in shown.err and shown.out == ""


def test_facts_of_a_file_cannot_forge_lines(tmp_path, capsys):
    """Escapes and line ends come out as codes, whatever part of the file they stand in."""
    model = tiny_model(features=16)
    evil = "\x1b[2Jx\nsha256   00 (verified)\u202e"
    info = {"network_g": {"type": evil}, "metrics": {evil: {"psnr": 1.0}}, "producer": evil, "training": [evil]}
    path = tmp_path / "evil_x4.bam.safetensors"
    write_packed(PackedModel(graph=model.graph, tensors=model.tensors, metadata=info), path)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert sum(line.startswith("sha256") for line in shown.splitlines()) == 1
