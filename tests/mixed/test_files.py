"""Mixed files from end to end: the commands, `bam test` as a network, broken files, and installations without torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.data_images import picture, write
from helpers.fuzzing import edited_models, mutate
from helpers.mixed_hosts import converted, mixed_model, network, section
from helpers.places import ROOT
from helpers.upscale_models import write_tiny
from helpers.without_torch import COMMAND, blocked
from safetensors.numpy import load, save

from bam_plugin import data
from bam_plugin.archs.packed_arch import PackedNetwork, PackedTrainingError
from bam_plugin.cli import main
from bam_plugin.data.benchmarks import prepare_benchmark
from bam_plugin.engine import Engine
from bam_plugin.engine.opening import open_engine
from bam_plugin.errors import MissingDependencyError
from bam_plugin.mixed.mixed_engine import MixedEngine
from bam_plugin.mixed.mixed_network import load_network
from bam_plugin.packed import EngineError, errors, read_model, read_packed
from bam_plugin.packed.container import METADATA_KEY, digest, unpack_container
from bam_plugin.packed.format import pack_model, unpack_any, write_packed
from bam_plugin.packed.mixed_format import PackedLayer
from bam_plugin.upscale import Upscaler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of RCAN with its option file, and the packed file of `bam convert`."""
    place = tmp_path_factory.mktemp("mixed")
    torch.save({"params": network("RCAN").state_dict()}, place / "net_g_1.pth")
    (place / "rcan.yml").write_text(yaml.safe_dump({"name": "rcan", "network_g": section("RCAN")}))
    return place


def convert(folder: Path, *more: str) -> int:
    given = (
        str(folder / "net_g_1.pth"),
        "-opt",
        str(folder / "rcan.yml"),
        "-o",
        str(folder / "rcan_x2.bam.safetensors"),
    )
    return main(["convert", *given, *more])


def test_commands_take_a_mixed_network(folder, capsys):
    report = folder / "report.json"
    written = []
    for _ in range(2):
        assert convert(folder, "--force", "--report", str(report)) == 0
        written.append((folder / "rcan_x2.bam.safetensors").read_bytes())
    assert written[0] == written[1]
    assert unpack_any(written[0]).sha256 == json.loads(report.read_text())["sha256"]
    out = capsys.readouterr().out
    assert "no packed graph: host.body.0" in out and "AdaptiveAvgPool2d has no packed counterpart" in out
    assert "flipped signs 0 of" in out and "so tiles are blended" in out
    assert "no packed counterpart" in json.loads(report.read_text())["no_graph"]

    path = str(folder / "rcan_x2.bam.safetensors")
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert "tiles are blended" in out and "in PyTorch; no packed graph: " in out and "(verified)" in out
    assert main(["inspect", path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["receptive_radius"], facts["scale"], facts["network"]) == (
        "mixed",
        None,
        2,
        "Binarized",
    )
    model = mixed_model("RCAN")
    assert [layer["name"] for layer in facts["layers"]] == [layer.name for layer in model.layers]
    assert facts["binary"]["weights"] == model.binary_bits == sum(layer["weights"] for layer in facts["layers"])

    write(folder / "in/a.png", picture(1, 50, 80))
    given = ["upscale", "-i", str(folder / "in"), "-o", str(folder / "out"), "-m", path, "-j", "1"]
    assert main([*given, "-t", "36", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["files"]
    assert any("AdaptiveAvgPool2d) sees the whole picture: the 2 tiles are blended" in note for note in record["notes"])
    assert cv2.imread(str(folder / "out/a.png")).shape == (100, 160, 3)
    assert main([*given, "--precision", "int8"]) == 2
    assert "EngineError: a mixed network offers no precision but fp32" in capsys.readouterr().err


def test_a_graph_can_be_required(folder, capsys):
    assert convert(folder, "--dry-run", "--require-graph") == 2
    assert "ConversionError: host.body.0.residual_group.0.rcab.3.attention.0" in capsys.readouterr().err


def test_installations_without_torch_say_what_is_missing(folder):
    write_packed(mixed_model("RCAN"), folder / "rcan_x2.bam.safetensors")
    write(folder / "one/a.png", picture(1, 20, 30))
    result = blocked(COMMAND, *["inspect", "rcan_x2.bam.safetensors"], cwd=folder)
    assert result.returncode == 0 and "tiles are blended" in result.stdout, result.stderr
    words = ["upscale", "-i", "one", "-o", "none", "-m", "rcan_x2.bam.safetensors"]
    result = blocked(COMMAND, *words, cwd=folder)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert MissingDependencyError.__name__ in result.stderr and "torch is not installed; run: pip" in result.stderr
    assert "AdaptiveAvgPool2d" in result.stderr and not (folder / "none").exists()


def test_installations_with_torch_alone_say_what_is_missing(folder):
    write_packed(mixed_model("RCAN"), folder / "rcan_x2.bam.safetensors")
    program = """
import sys
from bam_plugin.upscale import Upscaler

sys.modules["basicsr"] = None  # not installed
try:
    Upscaler("rcan_x2.bam.safetensors")
except Exception as error:
    print(type(error).__name__, error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("MissingDependencyError"), result.stdout + result.stderr
    assert "basicsr, which is not installed; run: pip" in result.stdout


def test_bam_test_measures_packed_files_like_networks(folder, tmp_path, monkeypatch):
    """Float-simulated, as a mixed file, as a graph: one option file, one number."""
    monkeypatch.chdir(tmp_path)
    data.register()
    for number in range(2):
        write(tmp_path / f"raw/Set5/{number}.png", picture(number, 48, 56))
    prepare_benchmark(tmp_path / "raw/Set5", tmp_path / "datasets", scales=(2,), progress=False)
    measured = {}
    for host in ("RCAN", "EDSR"):
        (tmp_path / f"{host}.bam.safetensors").write_bytes(converted(host).data)
        torch.save({"params": network(host).state_dict()}, tmp_path / f"{host}.pth")
        for kind in ("float", "packed"):
            pretrained = str(tmp_path / f"{host}.pth") if kind == "float" else None
            packed = {"type": "PackedNetwork", "file": f"{host}.bam.safetensors", "threads": 1}
            options = {
                "name": f"{host}_{kind}",
                "model_type": "BinarySRModel",
                "scale": 2,
                "num_gpu": 0,
                "manual_seed": 0,
                "datasets": {
                    "test_1": {
                        "name": "Set5",
                        "type": "BenchmarkDataset",
                        "dataroot_gt": "datasets/Set5/GTmod2",
                        "dataroot_lq": "datasets/Set5/LRbicx2",
                        "io_backend": {"type": "disk"},
                    }
                },
                "network_g": section(host) if kind == "float" else packed,
                "path": {"pretrain_network_g": pretrained, "strict_load_g": True},
                "val": {
                    "save_img": False,
                    "suffix": None,
                    "metrics": {
                        "psnr": {"type": "calculate_psnr_y", "crop_border": 2},
                        "ssim": {"type": "calculate_ssim_y", "crop_border": 2},
                    },
                },
            }
            path = tmp_path / f"{host}_{kind}.yml"
            path.write_text(yaml.safe_dump(options))
            assert main(["test", "-opt", str(path)]) == 0
            results = json.loads((tmp_path / f"results/{host}_{kind}/results.json").read_text())["results"]
            measured[host, kind] = results[0]["psnr"]
        assert measured[host, "packed"] == pytest.approx(measured[host, "float"], abs=0.01)


def test_packed_network_takes_batches_and_no_training(tmp_path):
    for host in ("RCAN", "EDSR"):
        path = tmp_path / f"{host}.bam.safetensors"
        path.write_bytes(converted(host).data)
        net = PackedNetwork(file=str(path), threads=1)
        x = torch.rand(2, 3, 9, 12)
        with pytest.raises(PackedTrainingError, match="only evaluates"):
            net(x)
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(x), network(host)(x), rtol=1e-4, atol=1e-4)


def test_readers_of_graphs_name_a_mixed_file(tmp_path):
    path = tmp_path / "a.bam.safetensors"
    write_packed(mixed_model("RCAN"), path)
    with pytest.raises(errors.MixedFileError, match=r"a\.bam\.safetensors: a packed graph was expected"):
        read_packed(path)
    assert main(["bench", str(path)]) == 2
    assert isinstance(open_engine(read_model(path)), MixedEngine)
    assert isinstance(open_engine(read_model(write_tiny(tmp_path))), Engine)
    engine = Upscaler(path, threads=1).engine
    for wrong in (np.zeros((3, 4, 1), np.float32), np.zeros((3, 4, 3)), np.zeros((0, 4, 3), np.float32)):
        with pytest.raises(EngineError):
            engine.run(wrong)


def forged(edit) -> bytes:
    """The file of RCAN with `edit(document, tensors)` done and the checksum made right again."""
    document, tensors = unpack_container(converted("RCAN").data)
    edit(document, tensors)
    text = json.dumps({**document, "sha256": digest(document, tensors)}, sort_keys=True, separators=(",", ":"))
    return save(tensors, metadata={METADATA_KEY: text})


LAYER = mixed_model("RCAN").layers[0].name
NORM = "host.conv_first.weight"


def field(name, value):
    return lambda document, tensors: document.__setitem__(name, value)


def layer(index, value):
    return lambda document, tensors: document["layers"][0].__setitem__(index, value)


def tensor(name, change):
    return lambda document, tensors: tensors.__setitem__(name, change(tensors[name]))


def host(**options):
    return lambda document, tensors: document["info"]["network_g"]["host"].update(options)


@pytest.mark.parametrize(
    ("expected", "message", "edit"),
    [
        (errors.NotPackedError, "kind 'mixed'", field("kind", "graph")),
        (errors.NotPackedError, "fields", field("more", 1)),
        (errors.NotPackedError, "scale", field("scale", 0)),
        (errors.NotPackedError, "radius", field("receptive_radius", -1)),
        (errors.NotPackedError, "radius", field("unbounded", "")),
        (errors.NotPackedError, "least_size", lambda document, _: document.update(size_multiple=3, least_size=4)),
        (errors.NotPackedError, "network_g", field("info", {})),
        (errors.InvalidLayerError, "list", field("layers", {})),
        (errors.InvalidLayerError, "layer 0", field("layers", [[1]])),
        (errors.InvalidLayerError, "alphabet", layer(5, "a")),
        (errors.InvalidLayerError, "kernel", layer(2, 4)),
        (errors.InvalidLayerError, "padding", layer(4, 2)),
        (errors.InvalidLayerError, "one name", lambda document, _: document["layers"].append(document["layers"][0])),
        (errors.MissingTensorError, "needs the tensor", layer(0, "nowhere")),
        (errors.MissingTensorError, "scale", lambda _, tensors: tensors.pop(f"{LAYER}.scale")),
        (errors.TensorShapeError, "weight", tensor(f"{LAYER}.weight", lambda a: a[..., :-1].copy())),
        (errors.TensorShapeError, "flip", tensor(f"{LAYER}.flip", lambda a: a.astype(np.float32))),
        (errors.TensorShapeError, "not finite", tensor(f"{LAYER}.scale", lambda a: a * np.float32(np.nan))),
        (errors.TensorShapeError, "not finite", tensor(NORM, lambda a: a * np.float32(np.inf))),
        (errors.TensorShapeError, "no binary layer", tensor(NORM, lambda a: a.astype(np.uint8))),
        (errors.InvalidLayerError, "thresholds", tensor(f"{LAYER}.threshold", lambda a: a * np.float32(np.nan))),
        (errors.InvalidLayerError, "flips", tensor(f"{LAYER}.flip", lambda a: a + np.uint8(2))),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(expected, message, edit):
    with pytest.raises(expected, match=rf"^a\.bam: (?s:.*){message}"):
        unpack_any(forged(edit), where="a.bam")


def drop_layer(document, tensors):
    document["layers"] = document["layers"][1:]
    for role in ("weight", "scale", "threshold", "flip"):
        tensors.pop(f"{LAYER}.{role}")


@pytest.mark.parametrize(
    ("expected", "message", "edit"),
    [
        (errors.MissingTensorError, "does not hold", lambda _, tensors: tensors.pop(NORM)),
        (errors.UnexpectedTensorError, "no place", lambda _, tensors: tensors.update(more=np.zeros(2, np.float32))),
        (errors.TensorShapeError, "conv_first", tensor(NORM, lambda a: a[:, :, :1].copy())),
        (errors.TensorShapeError, "int64", tensor(NORM, lambda a: a.astype(np.int64))),
        (errors.InvalidLayerError, "missing", drop_layer),
        (errors.InvalidLayerError, "the network has there", layer(3, 2)),
        (errors.InvalidLayerError, "not those of the network", host(num_block=3)),
        (errors.UnbuildableNetworkError, "cannot be built", host(type="NoSuchNetwork")),
        (errors.UnbuildableNetworkError, "cannot be built", host(num_feat="many")),
        (errors.UnbuildableNetworkError, "more than [0-9]+ parts", host(num_block=10**9)),
        (errors.UnbuildableNetworkError, "more than [0-9]+ numbers", host(num_feat=3000)),
        (
            errors.UnbuildableNetworkError,
            "network_g.file is 'a'",
            lambda document, _: document["info"].update(network_g={"type": "PackedNetwork", "file": "a"}),
        ),
    ],
)
def test_what_does_not_fit_the_network_is_named(expected, message, edit):
    model = unpack_any(forged(edit))
    with pytest.raises(expected, match=message):
        load_network(model)


@pytest.mark.parametrize(
    ("message", "edit"),
    [
        ("the file promises", field("scale", 3)),
        ("the file promises", field("num_out_ch", 4)),
        ("does not run on pictures", field("num_in_ch", 4)),
    ],
)
def test_what_a_file_promises_is_tried(message, edit):
    with pytest.raises(errors.UnbuildableNetworkError, match=message):
        MixedEngine(unpack_any(forged(edit)))


def test_old_and_new_versions():
    document, _ = unpack_container(converted("RCAN").data)
    assert (document["format_version"], document["kind"]) == (2, "mixed")
    document, _ = unpack_container(converted("EDSR").data)
    assert document["format_version"] == 1 and "kind" not in document
    with pytest.raises(errors.NotPackedError, match="I64"):  # graphs have none
        unpack_any(forged(lambda document, tensors: (document.update(format_version=1),
                                                     tensors.update(a=np.zeros(1, np.int64)))))  # fmt: skip
    assert converted("SwinIR").data == pack_model(mixed_model("SwinIR"))
    assert any(array.dtype == np.int64 for array in mixed_model("SwinIR").tensors.values())
    assert load(converted("RCAN").data).keys() == mixed_model("RCAN").tensors.keys()


def test_broken_files_raise_only_named_errors():
    good = converted("RCAN").data
    for seed in range(300):
        with contextlib.suppress(errors.PackedFormatError):
            unpack_any(mutate(good, np.random.default_rng(seed)))
    read = 0
    for forgery in islice(edited_models(mixed_model("RCAN"), np.random.default_rng(3)), 600):
        with contextlib.suppress(errors.PackedFormatError):
            model = unpack_any(forgery)
            read += 1
            if read % 20 == 0:  # builds the network, which takes its time
                load_network(model)
    assert read > 20


def test_a_layer_of_a_file_is_what_it_says():
    model = mixed_model("RCAN")
    first = model.layers[0]
    assert first == PackedLayer(LAYER, 8, 3, 1, 1, "-1,+1") and first.roles[2] == "threshold"
    assert model.own >= {first.tensor(role) for role in first.roles} and NORM not in model.own
    assert dataclasses.replace(model, metadata={**model.metadata, "a": 1}).sha256 != model.sha256
