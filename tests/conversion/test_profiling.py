"""The counts of `bam profile`: the paper's printed numbers, hand-computed examples, the size of a real packed file."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bam_plugin import cli
from bam_plugin.archs.binarized_arch import Binarized
from bam_plugin.archs.bsrn_arch import BSRN, LITERAL
from bam_plugin.archs.srresnet_arch import SRResNet
from bam_plugin.archs.vdsr_arch import VDSR
from bam_plugin.conversion.converter import convert_network
from bam_plugin.conversion.profiling import ProfileError, profile
from bam_plugin.nn import BinaryConv2d

SMALL_SWINIR = ["embed_dim=12", "depths=[2]", "num_heads=[2]", "window_size=7"]


def test_bsrn_counts_as_the_paper_prints() -> None:
    result = profile(BSRN(**LITERAL))
    # 1,214,979 and the two scalars beta of each of 40 LB blocks, which the paper's count leaves out.
    assert result.total("params") == 1_214_979 + 80
    # conv MACs + 1 per bias + 1 per ReLU element, by hand: head, 40 LB blocks, closing conv, two stages, tail.
    low, mid, high = 320 * 180, 640 * 360, 1280 * 720
    head, body_end = (48 * 27 + 48 + 48) * low, (48 * 432 + 48) * low
    upsampler = (192 * 432 + 192) * (low + mid) + (3 * 432 + 3) * high
    binary = 40 * (48 * 48 * 9 + 2 * 48 * 48) * low
    assert result.total("binary_macs") == binary
    assert result.total("float_macs") == head + body_end + upsampler
    assert result.total("macs") / 1e9 == pytest.approx(84.8, rel=1e-3)
    # The binary-aware counts published for it (BBCU's convention): 233K parameters, 27.3G operations.
    assert round(result.effective_params / 1e3) == 233
    assert round(result.ops / 1e9, 1) == 27.3
    assert (result.input_size, result.output_size) == ((320, 180), (1280, 720))


@pytest.mark.parametrize(("network", "params", "macs"), [(VDSR(), 668.2e3, 616.96e9), (SRResNet(), 1546.8e3, 127.90e9)])
def test_full_precision_counts_as_the_paper_prints(network: nn.Module, params: float, macs: float) -> None:
    result = profile(network)
    assert result.total("params") == pytest.approx(params, rel=1e-4)
    assert result.total("macs") == pytest.approx(macs, rel=1e-4)
    assert result.total("bits") == result.total("binary_macs") == 0


@pytest.mark.parametrize(("network", "body"), [(VDSR(binarizer="bam"), 18), (SRResNet(binarizer="bam"), 32)])
def test_a_binary_body_moves_its_products_to_one_bit(network: nn.Module, body: int) -> None:
    result = profile(network)
    pixels = 1280 * 720 if isinstance(network, VDSR) else 320 * 180
    assert result.total("bits") == body * 64 * 64 * 9
    assert result.total("binary_macs") == body * 64 * 64 * 9 * pixels


def test_a_binarized_host_is_counted_with_what_it_keeps() -> None:
    host = {"type": "ECBSR", "num_in_ch": 3, "num_out_ch": 3, "num_block": 2, "num_channel": 16, "with_idt": False}
    network = Binarized(host={**host, "act_type": "prelu", "scale": 4}, recipe={"binarizer": "bnn"})
    result = profile(network, output_size=(64, 48))
    binary = {layer.name: layer for layer in result.layers if layer.bits}
    assert {f"host.{name}.conv" for name in network.report.binarized} == set(binary)
    assert all(layer.binary_macs == layer.bits * 16 * 12 for layer in binary.values())


def test_functional_operations_are_counted_in_the_layer_that_calls_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
            self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
            self.norm = nn.BatchNorm2d(4)
            self.attention = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = F.leaky_relu(self.norm(self.conv(x)))
            out = out * self.attention(out.mean(dim=(2, 3)))[:, :, None, None]
            return self.up(out) + x

    result = profile(Net(), output_size=(8, 6))
    macs = {layer.name: layer.float_macs for layer in result.layers}
    assert macs == {
        "": 4 * 12,  # leaky ReLU on 4 maps of 4x3
        "conv": 4 * 27 * 12,
        "norm": 0,
        "attention": 4 * 4 + 4,
        "up": 4 * 3 * 4 * 12 + 3 * 48,  # each of 12 inputs meets every weight; one bias per output
    }


@pytest.mark.parametrize(
    ("weight", "weight_options", "activation", "activation_options", "bases", "binary"),
    [
        ("bam", {"alpha": "solved"}, "bn_sign", {}, 1, True),
        ("dorefa", {}, "dorefa", {}, 1, True),
        ("abc", {"bases": 3}, "abc", {"bases": 2}, 3, True),
        ("xnor", {}, "xnor", {}, 1, True),
        ("react", {}, "float", {}, 1, False),
    ],
)
def test_binary_convolution(
    weight: str, weight_options: dict, activation: str, activation_options: dict, bases: int, binary: bool
) -> None:
    conv = BinaryConv2d(
        in_channels=16,
        out_channels=8,
        weight_binarizer=weight,
        weight_options=weight_options,
        activation_binarizer=activation,
        activation_options=activation_options,
    )
    before = copy.deepcopy(conv.state_dict())
    (layer,) = profile(conv, output_size=(10, 10), num_in_ch=16).layers
    products = 8 * 16 * 9 * 100
    pairs = bases * activation_options.get("bases", 1)
    assert layer.binary_params == 8 * 16 * 9
    assert layer.bits == bases * 8 * 16 * 9
    assert layer.binary_macs == (pairs * products if binary else 0)
    # XNOR's mean of magnitudes over each window is a convolution of its own, on float values.
    window = 9 * 100 if weight == "xnor" else 0
    assert layer.float_macs == (window if binary else products)
    assert layer.macs == products + window
    # The module itself was not touched: its weights have values and it still runs.
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
    assert conv(torch.randn(1, 16, 5, 5)).isfinite().all()


def test_packed_bytes_are_those_of_a_real_packed_file() -> None:
    network = BSRN(num_feat=24, num_hpb=2, upsampler="pixelshuffledirect", global_skip=None).eval()
    conversion = convert_network(network, verify=False)
    tensors = sum(array.nbytes for array in conversion.model.tensors.values())
    counted = profile(network, output_size=(64, 64)).total("packed_bytes")
    # The file also keeps the fixed offset beside each trained factor beta, 4 bytes each.
    assert counted == tensors - 4 * 2 * 2 * 2


@pytest.mark.parametrize("channels", [9, 12, 33, 65])
@pytest.mark.parametrize(
    "options",
    [
        {"binarizer": "bam"},
        {"binarizer": "bam", "activation_binarizer": "float"},
        {"binarizer": "abc", "weight_options": {"bases": 2}, "activation_options": {"bases": 3}},
        {"binarizer": "dorefa"},
        {"binarizer": "xnor"},
    ],
)
def test_packed_bytes_of_a_binary_convolution_are_those_in_the_file(options: dict, channels: int) -> None:
    network = SRResNet(num_feat=channels, num_block=1, upscale=2, **options).eval()
    rows = {row.layer: row.bytes_after for row in convert_network(network, verify=False).rows}
    convs = [layer for layer in profile(network, output_size=(16, 16)).layers if layer.kind == "BinaryConv2d"]
    assert len(convs) == 2
    for layer in convs:
        assert layer.packed_bytes == rows[layer.name]


def test_packed_bytes_of_a_network_are_those_in_the_file_but_for_scalars() -> None:
    """Filters, convolutions, normalizations, slopes. A factor beta is a tensor in the file or a number in its graph."""
    network = SRResNet(num_feat=16, num_block=2, binarizer="bam", activation_binarizer="float").eval()
    tensors = convert_network(network, verify=False).model.tensors
    counted = profile(network, output_size=(64, 64)).total("packed_bytes")
    assert counted == sum(array.nbytes for array in tensors.values()) + 4 * 4


def test_command_prints_json_and_markdown(capsys: pytest.CaptureFixture) -> None:
    arguments = ["profile", "BSRN", "--set", "num_hpb=1", "upscale=2", "--size", "64x48"]
    assert cli.main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["input_size"] == [32, 24]
    assert document["total"]["params"] == sum(layer["params"] for layer in document["layers"])
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "| body.0.blocks.1.conv3 " in text
    assert "paper" not in text  # a changed network has no printed numbers
    assert cli.main(["profile", "BSRN", "--totals"]) == 0
    assert "1216K" in capsys.readouterr().out


def test_command_lists_the_shipped_networks(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["profile", "--shipped", "VDSR_*x4"]) == 0
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()}
    # 18 of VDSR's convolutions, 3 bases each for ABC: MACs counted once, three times as 1-bit.
    body = 18 * 64 * 64 * 9 * 1280 * 720 / 1e9
    for name, times in (("VDSR_bnn_x4", 1), ("VDSR_abc_x4", 3)):
        assert f" {times * body:.2f}G |" in rows[name]
        assert "668K / 616.9G" in rows[name]
    assert " 616.96G |" in rows["VDSR_x4"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["BSRM"], "did you mean BSRN?"),
        (["BSRN", "--set", "num_fea=3"], "did you mean num_feat?"),
        (["BSRN", "--set", "num_feat"], "KEY=VALUE"),
        (["BSRN", "--method", "BAM"], "-opt"),
        (["-opt", "nowhere.yml"], "bam options"),
        (["EDSR"], "--set KEY=VALUE"),
        (["SwinIR", "--set", *SMALL_SWINIR, "img_size=16"], "change its options by --set"),
    ],
)
def test_command_names_the_mistake(arguments: list[str], expected: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["profile", *arguments]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("window", "upscale", "size", "fitting"), [(8, 1, "100x100", "104x104"), (7, 2, "1280x720", "1288x728")]
)
def test_command_names_the_multiples_that_a_network_needs(
    window: int, upscale: int, size: str, fitting: str, capsys: pytest.CaptureFixture
) -> None:
    """SwinIR's windows divide its input; 7 divides no usual size."""
    options = [*SMALL_SWINIR, f"window_size={window}", f"img_size={8 * window}"]
    options += ["upsampler=pixelshuffle", f"upscale={upscale}"]
    assert cli.main(["profile", "SwinIR", "--set", *options, "--size", size]) == 2
    message = capsys.readouterr().err
    assert f"in multiples of {window} pixels" in message
    assert f"(--size) in multiples of {window * upscale}, such as {fitting}" in message
    assert cli.main(["profile", "SwinIR", "--set", *options, "--size", fitting]) == 0
    assert f"{fitting} from" in capsys.readouterr().out


def test_a_network_that_does_not_fit_is_named() -> None:
    with pytest.raises(ProfileError, match=r"\(1, 5, 48, 48\)"):
        profile(BSRN(num_hpb=1), num_in_ch=5)
