"""Conversion: a checkpoint of a real network, through the command line, to a file that computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.networks import SMALL_BSRN, enliven
from helpers.places import ROOT
from torch import nn

from bam_plugin.cli import main
from bam_plugin.conversion.converter import convert_network
from bam_plugin.conversion.lowering import lower_network
from bam_plugin.conversion.verify import compare, default_images
from bam_plugin.engine import Engine
from bam_plugin.nn import METHODS, BinaryConv2d
from bam_plugin.packed import read_packed
from bam_plugin.packed.errors import ConversionError
from bam_plugin.toolbox.networks import build_network, input_channels


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint as BasicSR saves it, whose EMA weights differ from the others, and its option file."""
    network, other = enliven(build_network(SMALL_BSRN)), build_network(SMALL_BSRN)
    torch.save({"params": other.state_dict(), "params_ema": network.state_dict()}, tmp_path / "net_g_10.pth")
    (tmp_path / "options.yml").write_text(yaml.safe_dump({"name": "small", "network_g": SMALL_BSRN}))
    return tmp_path / "net_g_10.pth", tmp_path / "options.yml"


def agrees(network: nn.Module, conversion) -> None:
    tensors = conversion.model.tensors.values()
    assert sum(row.bytes_after for row in conversion.rows) == sum(array.nbytes for array in tensors)
    assert len({row.layer for row in conversion.rows}) == len(conversion.rows)
    assert conversion.comparison.agreement >= 0.9999, conversion.comparison
    image = torch.rand(1, conversion.model.num_in_ch, 11, 14)
    with torch.no_grad():
        expected = network.eval()(image)[0].permute(1, 2, 0).numpy()
    result = Engine(conversion.model).run(image[0].permute(1, 2, 0).contiguous().numpy())
    assert np.abs(result - expected).mean() < 1e-3


def test_command_converts_and_says_what_it_did(trained, tmp_path, capsys):
    checkpoint, options = trained
    output, report = tmp_path / "small_x4.bam.safetensors", tmp_path / "report.json"
    facts = tmp_path / "facts.yml"
    facts.write_text(
        "training: {data: [a, b], terms: free, psnr: {5000: 30.0, 10000: 30.1}}\nmetrics: {Set5: {psnr: 30.1}}\n"
    )
    arguments = ["convert", "-i", str(checkpoint), "-opt", str(options), "-o", str(output)]
    assert main([*arguments, "--facts", str(facts), "--report", str(report)]) == 0
    text = capsys.readouterr().out
    assert "body.0.blocks.0.conv3" in text and "packed" in text and "flipped signs" in text
    model = read_packed(output)
    assert model.scale == 4
    assert model.metadata["network_g"] == SMALL_BSRN
    assert model.metadata["source_key"] == "params_ema"
    assert model.metadata["training"]["psnr"] == {"5000": 30.0, "10000": 30.1}
    assert model.metadata["metrics"] == {"Set5": {"psnr": 30.1}}
    rows = json.loads(report.read_text())["layers"]
    binary = [row for row in rows if row["note"] == "packed"]
    assert len(binary) == 2 * 2 * 3
    assert sum(np.prod(row["shape"]) for row in binary) == model.binary_bits
    # The totals of the table are those of the checkpoint's network and of the file.
    tensor_bytes = sum(array.nbytes for array in model.tensors.values())
    numbers = sum(t.numel() for t in build_network(SMALL_BSRN).state_dict().values() if t.is_floating_point())
    total = next(line.split() for line in text.splitlines() if line.startswith("total"))
    assert total[1:3] == [f"{32 * numbers:,}", f"{tensor_bytes:,}"]

    # What the network computes with the EMA weights, not with the others.
    network = build_network(SMALL_BSRN)
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["params_ema"])
    agrees(network, convert_network(network))

    first = output.read_bytes()
    assert main(arguments) == 2  # exists
    assert "--force" in capsys.readouterr().err
    again = [*arguments, "--force", "--facts", str(facts)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/convert_binary.py"), *again[1:]], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == first  # equal input, equal bytes, in another process


def test_disagreement_writes_nothing(trained, tmp_path, capsys, monkeypatch):
    checkpoint, options = trained
    output = tmp_path / "out.bam.safetensors"
    arguments = ["convert", "-i", str(checkpoint), "-opt", str(options), "-o", str(output)]
    assert main([*arguments, "--dry-run"]) == 0
    assert main([*arguments, "--min-agreement", "nan"]) == 2
    assert "--min-agreement takes a share" in capsys.readouterr().err

    def turned_filters(graph, tensors):  # of one layer
        name = next(node.tensors["weight"] for node in graph.nodes if node.op == "binary_conv2d")
        return name, tensors[name] ^ np.uint8(0xFF)

    def turned_threshold(graph, tensors):  # of one channel
        name = [node.tensors["flip"] for node in graph.nodes if node.op == "threshold"][-1]
        return name, tensors[name] ^ (np.arange(16) == 5).astype(np.uint8)

    for fault in (turned_filters, turned_threshold):

        def with_the_fault(*args, fault=fault, **kwargs):
            graph, tensors, rows = lower_network(*args, **kwargs)
            name, tensor = fault(graph, tensors)
            return graph, {**tensors, name: tensor}, rows

        monkeypatch.setattr("bam_plugin.conversion.converter.lower_network", with_the_fault)
        assert main(arguments) == 1
        assert not output.exists()
        message = capsys.readouterr().err
        assert "the packed network agrees with PyTorch in" in message and "a fault of the conversion" in message


def test_depth_does_not_make_a_comparison_worse():
    """One flipped sign flips thousands behind it; from the same signs each layer is judged by itself."""
    deep = SMALL_BSRN | {"num_hpb": 12}
    network = enliven(build_network(deep))
    model = convert_network(network, verify=False).model
    first = next(node for node in model.graph.nodes if node.op == "threshold")
    name = first.tensors["threshold"]
    nearby = model.tensors[name] + np.float32(1e-3)  # as a rougher rounding in front of it would decide
    turned = replace(model, tensors={**model.tensors, name: nearby})
    comparison = compare(network, Engine(turned), default_images(3))
    assert 0 < comparison.flips[first.name][0] == comparison.flipped < 200
    assert comparison.alone.within_one_share < 0.995
    assert comparison.agreement > 0.999 and comparison.same_signs.max_difference <= 1


@pytest.mark.parametrize(
    ("option", "place"),
    [("-o", "net_g_10.pth"), ("--report", "net_g_10.pth"), ("--report", "out.st"), ("-o", "options.yml")],
)
def test_no_output_takes_the_place_of_another_file(trained, tmp_path, capsys, option, place):
    checkpoint, options = trained
    before = {path: path.read_bytes() for path in (checkpoint, options)}
    arguments = ["convert", str(checkpoint), "-opt", str(options), "-o", str(tmp_path / "out.st"), "--no-verify"]
    assert main([*arguments, option, str(tmp_path / place), "--force"]) == 2
    assert "both name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before and not (tmp_path / "out.st").exists()


def test_reports_are_not_replaced_without_force(trained, tmp_path, capsys):
    checkpoint, options = trained
    report = tmp_path / "report.json"
    report.write_text("kept")
    arguments = ["convert", str(checkpoint), "-opt", str(options), "-o", str(tmp_path / "out.st"), "--no-verify"]
    assert main([*arguments, "--report", str(report)]) == 2
    assert "report.json exists" in capsys.readouterr().err and report.read_text() == "kept"
    assert main([*arguments, "--report", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main([*arguments, "--report", str(report), "--force"]) == 0
    assert json.loads(report.read_text())["layers"]


def test_checkpoint_of_a_training_knows_its_network(trained, tmp_path, capsys, monkeypatch):
    """BinarySRModel records its network beside the weights; BasicSR's own strict loading does not mind."""
    from basicsr.models.base_model import BaseModel

    from bam_plugin.models.binary_sr_model import BinarySRModel

    network, other = enliven(build_network(SMALL_BSRN)), build_network(SMALL_BSRN)
    model = BinarySRModel.__new__(BinarySRModel)  # saving needs the options alone
    model.opt = {"network_g": {**SMALL_BSRN, "beta_init": (0.0, 0.5)}, "path": {"models": str(tmp_path)}, "dist": False}
    model.save_network([network, other], "net_g", 20, param_key=["params", "params_ema"])
    checkpoint = tmp_path / "net_g_20.pth"
    reader, twin = BaseModel({"num_gpu": 0, "is_train": False}), build_network(SMALL_BSRN)
    reader.load_network(twin, str(checkpoint), True, "params")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in twin.state_dict().items())

    output = tmp_path / "recorded_x4.bam.safetensors"
    assert main(["convert", str(checkpoint), "-o", str(output), "--param-key", "params"]) == 0
    packed = read_packed(output)
    assert packed.metadata["network_g"] == {**SMALL_BSRN, "beta_init": [0.0, 0.5]}
    agrees(network, convert_network(network))
    image = np.random.default_rng(0).random((7, 9, 3), dtype=np.float32)
    assert np.array_equal(Engine(packed).run(image), Engine(convert_network(network).model).run(image))

    capsys.readouterr()
    assert main(["convert", str(trained[0]), "-o", str(tmp_path / "none_x4.bam.safetensors")]) == 2  # no record
    assert "-opt" in capsys.readouterr().err
    assert main(["convert", str(checkpoint), "-i", str(checkpoint), "-o", str(output), "--force"]) == 2
    assert main(["convert", str(checkpoint), "--method", "w1", "-o", str(output), "--force"]) == 2


def test_bad_input_is_named(trained, tmp_path, capsys):
    checkpoint, options = trained
    output = str(tmp_path / "out.bam.safetensors")
    other = tmp_path / "other.yml"

    def convert(*, inp=checkpoint, opt=options, extra=()) -> str:
        assert main(["convert", "-i", str(inp), "-opt", str(opt), "-o", output, *extra]) == 2
        return capsys.readouterr().err

    other.write_text(yaml.safe_dump({"network_g": {**SMALL_BSRN, "num_hpb": 3}}))
    assert "missing ['body.2" in convert(opt=other)
    other.write_text(yaml.safe_dump({"network_g": {**SMALL_BSRN, "num_feat": 24}}))
    assert "of another shape" in convert(opt=other)
    other.write_text(yaml.safe_dump({"network_g": {**SMALL_BSRN, "depth": 3}}))
    assert "depth" in convert(opt=other)
    other.write_text(yaml.safe_dump({"network_g": {"type": "NoSuchNet"}}))
    assert "NoSuchNet" in convert(opt=other)
    other.write_text("name: x\n")
    assert "network_g" in convert(opt=other)
    assert "missing.pth" in convert(inp=tmp_path / "missing.pth")
    assert "params_x" in convert(extra=["--param-key", "params_x"])
    evil = tmp_path / "evil.pth"
    torch.save({"params": SideEffect()}, evil)
    text = convert(inp=evil)  # weights_only: nothing of it was run
    assert "evil.pth" in text
    garbage = tmp_path / "garbage.pth"
    for content in (b"", b"no checkpoint", b"PK\x03\x04 neither", checkpoint.read_bytes()[:1000]):
        garbage.write_bytes(content)
        text += convert(inp=garbage)
    # PyTorch's own words advise to switch its safety off.
    assert text.count("\n") == text.count("net_g_latest.pth") == 5 and "weights_only" not in text
    state = torch.load(checkpoint, weights_only=True)["params"]
    state["head.0.weight"][0, 0, 0, 0] = float("nan")
    broken = tmp_path / "broken.pth"
    torch.save(state, broken)  # a bare state dict is read, too
    assert "not finite" in convert(inp=broken)


class SideEffect:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    "options",
    [
        {
            "identity": False,
            "beta_init": [1.0, 1.0],
            "beta_offset": [0.0, 0.0],
            "output_scale": None,
            "global_skip": None,
        },
        {"beta": "scalar", "beta_init": [0.5, 0.7], "beta_statistic": "mean", "output_scale": "scalar"},
        {"beta": "one", "alpha": "learned", "long_range": False, "global_skip": "bicubic"},
        {"accumulate_activations": False, "alpha": "learned"},
        {"upsampler": "pixelshuffle", "upscale": 3, "short_range": False, "beta_statistic": "mean"},
        {"num_in_ch": 1, "num_out_ch": 1, "upscale": 2, "num_feat": 13},
    ],
)
def test_readings_of_bsrn(options):
    network = enliven(build_network({**SMALL_BSRN, **options}))
    agrees(network, convert_network(network, num_in_ch=options.get("num_in_ch", 3)))


@pytest.mark.parametrize(
    "options",
    [
        {"num_planes": 2},
        {"weight_binarizer": "sketch"},
        {"accumulate_weights": True, "accumulate_activations": True},
        {"depthwise": True},
        {"binarizer": "bbcu", "head_kernel": 1, "tail_kernel": 3, "upscale": 2},
    ],
)
def test_plainbsr(options):
    section = {"type": "PlainBSR", "num_feat": 16, "num_group": 2, "num_convs": 2, "stem_feat": 8}
    network = enliven(build_network({**section, **options}))
    conversion = convert_network(network, num_in_ch=3)
    agrees(network, conversion)
    planes = 2 if "num_planes" in options or "weight_binarizer" in options else 1
    assert sum(node.op == "binary_conv2d" for node in conversion.model.graph.nodes) == 4 * planes


@pytest.mark.parametrize(
    "section",
    [
        {"type": "MSRResNet", "num_feat": 8, "num_block": 2, "upscale": 4},
        {"type": "EDSR", "num_feat": 8, "num_block": 2, "upscale": 3, "res_scale": 0.1},
        {"type": "SRVGGNetCompact_basicsr", "num_feat": 8, "num_conv": 2, "upscale": 2},
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_hosts_from_basicsr(section, binary):
    """A network that was not made for packing, as it is and with binary convolutions in its body."""
    section = {"num_in_ch": 3, "num_out_ch": 3, **section}
    network = build_network(section)
    if binary:
        body = [
            (n, m)
            for n, m in network.named_modules()
            if isinstance(m, nn.Conv2d) and m.in_channels == m.out_channels == 8
        ]
        for name, _ in body:
            parent, _, last = name.rpartition(".")
            replacement = BinaryConv2d(in_channels=8, out_channels=8)
            setattr(network.get_submodule(parent), last, replacement)
        assert len(body) >= 2
    conversion = convert_network(enliven(network))
    assert sum(row.note == "packed" for row in conversion.rows) == (len(body) if binary else 0)
    agrees(network, conversion)


@pytest.mark.parametrize("binarizer", sorted(METHODS))
@pytest.mark.parametrize(
    "section",
    [
        {"type": "SRResNet", "num_feat": 8, "num_block": 2, "upscale": 3},
        {"type": "VDSR", "num_feat": 8, "num_layers": 8, "upscale": 2},
    ],
    ids=lambda section: section["type"],
)
def test_every_binarizer_packs(section, binarizer):
    network = enliven(build_network({**section, "binarizer": binarizer}))
    conversion = convert_network(network)
    binary = [row for row in conversion.rows if row.kind == "BinaryConv2d"]
    assert binary and all(row.note.startswith("packed") for row in binary)
    if binarizer == "abc":
        assert binary[0].note == "packed in 3 bases"
    agrees(network, conversion)


def test_several_activation_bases_and_float_activations():
    options = {"type": "SRResNet", "num_feat": 8, "num_block": 2, "upscale": 2}
    network = enliven(build_network({**options, "binarizer": "abc", "activation_options": {"bases": 2}}))
    agrees(network, convert_network(network))
    network = enliven(build_network({**options, "binarizer": "bam", "activation_binarizer": "float"}))
    conversion = convert_network(network)
    assert {row.note for row in conversion.rows if row.kind == "BinaryConv2d"} == {"not packed: float activations"}
    agrees(network, conversion)


def test_mixed_host_from_an_option_section():
    section = {"type": "Binarized", "host": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8}}
    section["host"] |= {"num_block": 2, "upscale": 2}
    network = enliven(build_network({**section, "recipe": {"binarizer": "bam"}}))
    conversion = convert_network(network)
    assert sum(row.note == "packed" for row in conversion.rows) >= 4
    agrees(network, conversion)


def test_command_takes_grey_pictures_for_a_grey_host(tmp_path):
    host = {"type": "MSRResNet", "num_in_ch": 1, "num_out_ch": 1, "num_feat": 8, "num_block": 2, "upscale": 2}
    section = {"type": "Binarized", "host": host, "recipe": {"binarizer": "bam"}}
    torch.save({"params": enliven(build_network(section)).state_dict()}, tmp_path / "net.pth")
    (tmp_path / "options.yml").write_text(yaml.safe_dump({"network_g": section}))
    cv2.imwrite(str(tmp_path / "colour.png"), np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8))
    output = tmp_path / "grey_x2.bam.safetensors"
    arguments = ["convert", "-i", str(tmp_path / "net.pth"), "-opt", str(tmp_path / "options.yml"), "-o", str(output)]
    assert main([*arguments, "--images", str(tmp_path / "colour.png")]) == 0
    assert read_packed(output).num_in_ch == 1


def test_input_channels_of_a_host_that_does_not_state_them():
    convs = nn.Sequential(BinaryConv2d(in_channels=2, out_channels=4), nn.Conv2d(4, 4, 1))
    assert input_channels(convs, {"type": "Any"}) == 2
    assert input_channels(convs, {"type": "Binarized", "host": {"in_chans": 1}}) == 1
    assert input_channels(convs, {"num_in_ch": 3}) == 3


def test_command_takes_the_method_that_was_trained(tmp_path, capsys):
    """As the ablations w1 and w2 of BSRN: one file, several networks, of which only one fits the checkpoint."""
    methods: dict[str, dict[str, dict]] = {
        "bam": {"network_g": {"alpha": "learned"}},
        "w1": {"network_g": {"alpha": "one"}},
    }
    methods["w2"] = {"network_g": {"long_range": False, "short_range": False}}
    options = tmp_path / "options.yml"
    options.write_text(yaml.safe_dump({"method": "bam", "methods": methods, "network_g": SMALL_BSRN}))
    for name in ("w1", "w2"):
        section = {**SMALL_BSRN, **methods[name]["network_g"]}
        network = enliven(build_network(section))
        torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
        output = tmp_path / f"{name}_x4.bam.safetensors"
        arguments = ["convert", "-i", str(tmp_path / "net.pth"), "-opt", str(options), "-o", str(output)]
        assert main([*arguments, "--method", name]) == 0
        model = read_packed(output)
        assert model.metadata["network_g"] == section
        agrees(network, convert_network(network))
        image = np.random.default_rng(0).random((7, 9, 3), dtype=np.float32)
        assert np.array_equal(Engine(model).run(image), Engine(convert_network(network).model).run(image))
    assert main([*arguments, "--method", "w3", "--force"]) == 2
    assert "'w3'" in capsys.readouterr().err


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Sigmoid())

    def forward(self, x):
        return x * self.gate(x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), Softmaxed())

    def forward(self, x):
        return self.inner(x)


class Softmaxed(nn.Module):
    def forward(self, x):
        return x.softmax(1)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Pooled(), ["gate.0", "AdaptiveAvgPool2d"]),
        (Branching(), ["Branching"]),
        (Functional(), ["inner.1", "softmax"]),
        (nn.Sequential(nn.Conv2d(3, 3, 3)), ["0", "zero padding of half the kernel"]),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=2, dilation=2)), ["dilation 1"]),
        (nn.Sequential(nn.Upsample(size=(8, 8))), ["integer factor"]),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), ["running statistics"]),
    ],
)
def test_what_cannot_be_lowered_is_named(network, words):
    with pytest.raises(ConversionError) as caught:
        lower_network(network, num_in_ch=3)
    assert all(word in str(caught.value) for word in words), caught.value


def test_network_is_left_as_it_was():
    network = enliven(build_network(SMALL_BSRN)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    convert_network(network)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
