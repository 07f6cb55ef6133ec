"""The shipped option files: every row of the paper's tables is there, is right, and trains for one step."""

from __future__ import annotations

import csv
import importlib.resources
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.places import ROOT

from bam_plugin import cli
from bam_plugin.config import load_options, read_options
from bam_plugin.config.shipped import ShippedFile, copy_shipped, options_folder, shipped_files
from bam_plugin.nn import BinaryConv2d
from bam_plugin.nn.layers import BinaryLayer
from bam_plugin.packed import read_packed
from bam_plugin.packed.zoo import find_model

FILES = shipped_files()
# (file, method); None for a file without methods.
VARIANTS = [(file, method) for file in FILES for method in (file.methods or {None: ""})]
TRAININGS = [variant for variant in VARIANTS if variant[0].is_train]
TESTS = [variant for variant in VARIANTS if not variant[0].is_train]


def names(variants: list[tuple[ShippedFile, str | None]]) -> list[str]:
    return [f"{Path(file.name).stem}-{method}" for file, method in variants]


@pytest.mark.parametrize(("file", "method"), TRAININGS, ids=names(TRAININGS))
def test_a_training_is_checked_built_and_makes_a_step(file: ShippedFile, method: str | None) -> None:
    opt = load_options(file.path, is_train=True, method=method, files=False, force=["num_gpu=0"]).values
    from basicsr.models import build_model

    opt.update(dist=False, rank=0, world_size=1, is_train=True)
    forget_results_of_other_trainings(opt)
    model = build_model(opt)
    network, scale, size = model.net_g, opt["scale"], 4
    before = {name: value.clone() for name, value in network.named_parameters()}
    model.feed_data({"lq": torch.rand(1, 3, size, size), "gt": torch.rand(1, 3, size * scale, size * scale)})
    model.update_learning_rate(1, warmup_iter=-1)
    model.optimize_parameters(1)
    for name, module in network.named_modules():
        if isinstance(module, BinaryConv2d):
            gradient = module.weight.grad
            assert gradient is not None and gradient.isfinite().all() and gradient.any(), name
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(value.isfinite().all() for value in network.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in network.named_parameters())
    assert sum(isinstance(module, BinaryConv2d) for module in network.modules()) == expected_binary(opt)


def test_the_changes_that_the_files_name_give_the_plain_networks() -> None:
    """The comments of base/vdsr.yml: without identity paths and output scales, with clipped latents."""
    from basicsr.models import build_model

    forced = ["network_g:skip=false", "network_g:output_scale=~", "train:optim_g:type=BinaryAdam", "num_gpu=0"]
    file = options_folder() / "train/VDSR/train_VDSR_x2.yml"
    opt = load_options(file, is_train=True, method="bnn", files=False, force=forced).values
    opt.update(dist=False, rank=0, world_size=1, is_train=True)
    model = build_model(opt)
    layers = [module for module in model.net_g.modules() if isinstance(module, BinaryLayer)]
    assert len(layers) == 18
    assert not any(layer.skip or layer.conv.output_scale is not None for layer in layers)
    latents = {id(layer.conv.weight) for layer in layers}
    groups = [group for optimizer in model.optimizers for group in optimizer.param_groups]
    clipped = [group for group in groups if group.get("clip") == 1.0]
    assert {id(parameter) for group in clipped for parameter in group["params"]} == latents
    assert all(group["weight_decay"] == 0 for group in clipped)


def forget_results_of_other_trainings(opt: dict[str, Any]) -> None:
    """A training may start from what another one leaves in experiments/, as long as that one is shipped too."""
    start = opt["path"].get("pretrain_network_g") or ""
    if start.startswith("experiments/"):
        names = {read_options(str(file.path)).values["name"] for file in FILES if file.is_train}
        assert Path(start).parts[1] in names, f"no option file makes {start}"
        opt["path"]["pretrain_network_g"] = None


def expected_binary(opt: dict[str, Any]) -> int:
    """Binary convolutions that the paper's network has."""
    network = opt["network_g"]
    if network["type"] == "Binarized":
        return 2 * network["host"]["num_block"]
    if network["type"] == "BSRN":
        return 3 * network["num_hpb"] * network["num_lb"]
    if network["type"] == "PlainBSR":
        return network["num_group"] * network.get("num_convs", 1) * network.get("num_planes", 1)
    return 0 if network.get("binarizer") is None else {"VDSR": 18, "SRResNet": 32}[network["type"]]


@pytest.mark.parametrize(("file", "method"), TESTS, ids=names(TESTS))
def test_a_test_file_tests_what_its_training_trained(file: ShippedFile, method: str | None) -> None:
    values = load_options(file.path, is_train=False, method=method, files=False, force=["num_gpu=0"]).values
    if values["network_g"]["type"] == "Bicubic":
        return  # nothing to train
    if values["network_g"]["type"] == "PackedNetwork":
        packed = read_packed(find_model(values["network_g"]["file"]))
        recipe = read_options(options_folder() / "train/BSRN/train_BSRN_light_x4.yml").values
        assert packed.metadata["network_g"] == recipe["network_g"] and packed.scale == values["scale"]
        return
    trained = read_options(options_folder() / file.name.replace("test", "train"), method=method).values
    for key in ("name", "scale", "network_g"):
        assert values[key] == trained[key]
    assert values["path"]["pretrain_network_g"] == f"experiments/{values['name']}/models/net_g_latest.pth"
    network = values["network_g"].get("host", values["network_g"])
    assert network["upscale"] == values["scale"]


def test_every_row_of_the_paper_has_its_option_file() -> None:
    text = importlib.resources.files("bam_plugin.data").joinpath("paper_results.csv").read_text()
    rows = [row for row in csv.DictReader(text.splitlines()) if row["method"] != "Bicubic"]
    printed = {f"{row['method']}_x{row['scale']}".lower() for row in rows}
    # Table 4 (BSRN x4) and Table 5 (SRResNet x2 and x4 with full-precision activations).
    printed |= {f"bsrn_{name}_x4" for name in ("w1", "w2", "a1", "a2")}
    printed |= {f"srresnet_{name}_float_x{scale}" for name in ("ma", "bam") for scale in (2, 4)}
    for variants in (TRAININGS, TESTS):
        offered = {read_options(file.path, method=method).values["name"].lower() for file, method in variants}
        # The paper's plain BSRN is ours with BAM.
        offered |= {name.replace("bsrn_bam", "bsrn") for name in offered}
        assert printed <= offered


def test_the_recipe_is_the_papers() -> None:
    for file, method in TRAININGS:
        if not re.fullmatch(r"train_(VDSR|SRResNet|BSRN)_x[234]\.yml", file.path.name):
            continue
        values = read_options(file.path, method=method).values
        train, data, scale = values["train"], values["datasets"]["train"], values["scale"]
        assert train["optim_g"] == {"type": "Adam", "lr": 1e-4, "weight_decay": 2e-4, "betas": [0.5, 0.999]}
        # Halved every 200 epochs of 1000 iterations, up to the end.
        assert train["scheduler"]["gamma"] == 0.5
        assert train["scheduler"]["milestones"] == list(range(200_000, train["total_iter"], 200_000))
        assert (data["gt_size"], data["batch_size_per_gpu"]) == (48 * scale, 16)
        assert data["use_hflip"] and data["use_rot"]
        assert values["val"]["metrics"]["psnr"]["crop_border"] == scale


def test_the_ablations_are_what_they_are_called() -> None:
    from basicsr.archs import build_network

    def network(method: str) -> Any:
        values = read_options(options_folder() / "train/BSRN/train_BSRN_x4.yml", method=method).values
        return build_network({**values["network_g"], "num_hpb": 1})

    def trained(method: str, ending: str) -> bool:
        return any(name.endswith(ending) for name, _ in network(method).named_parameters())

    assert trained("bam", "binarize_weight.alpha") and trained("bam", "beta1.scale")
    assert not trained("w1", "binarize_weight.alpha") and trained("w1", "beta1.scale")
    assert not trained("a1", "beta1.scale") and not trained("a2", "beta1.scale")
    # W2: the signs of a later 3x3 filter do not depend on the earlier one; with BAM they do.
    for method, accumulates in (("w2", False), ("bam", True)):
        net = network(method).eval()
        first, second = net.body[0].blocks[0], net.body[0].blocks[1]
        image = torch.rand(1, 48, 6, 6)
        outputs = []
        for factor in (1.0, -100.0):
            first.conv3.weight.data *= factor
            outputs.append(second(image, (first.conv3.weight,)))
        assert torch.equal(*outputs) != accumulates
    # A2: without accumulation each convolution sees the one before it alone, beside its own identity path.
    block = network("a2").eval().body[0].blocks[0]
    image = torch.rand(1, 48, 6, 6)
    a1 = block.conv3(image) + image
    a2 = block.conv1_a(a1) + a1
    assert torch.equal(block(image), block.conv1_b(a2, (block.conv1_a.weight,)) + a2)


@pytest.mark.parametrize("file", [file for file in FILES if file.methods], ids=lambda file: Path(file.name).stem)
def test_the_comments_name_the_methods(file: ShippedFile) -> None:
    for listed in re.findall(r"Methods: (.*)\.", file.path.read_text()):
        assert listed.split(", ") == list(file.methods)
    assert f"bam {'train' if file.is_train else 'test'} -opt options/{file.name} --method" in file.path.read_text()


def test_list(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["options"]) == 0
    text = capsys.readouterr().out
    assert "options/train/VDSR/train_VDSR_x4.yml\n" in text
    assert "--method bam     VDSR_BAM, Table 1: Set5 30.31, Set14 27.46" in text
    assert "Set14 29.63 (misprint?)" in text
    assert "options/test/VDSR/test_VDSR_x4.yml    the test of full, bnn, dorefa, abc, bam\n" in text
    assert cli.main(["options", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [file.name for file in FILES]


def test_numbers_of_the_paper_stand_beside_its_recipe_only(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["options"]) == 0
    blocks = re.split(r"^(?=options/)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(FILES)
    for block, file in zip(blocks, FILES, strict=True):
        recipe = re.fullmatch(r"train_(VDSR|SRResNet|BSRN|EDSR)_x[234]\.yml", file.path.name) is not None
        assert file.paper_recipe == recipe
        assert recipe or not re.search(r"\d\d\.\d\d", block), block
        printed = recipe and "EDSR" not in file.name  # which the paper does not have
        assert bool(re.search(r"Set5 (x4 )?\d\d\.\d\d", block)) == printed


def test_copies_work_alone_and_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["options", "--copy", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(copy_shipped(tmp_path))
    copy = tmp_path / "options/train/VDSR/train_VDSR_x4.yml"
    assert read_options(copy).values == read_options(options_folder() / "train/VDSR/train_VDSR_x4.yml").values
    copy.write_text(copy.read_text() + "# mine\n")
    assert cli.main(["options", "--copy", str(tmp_path)]) == 2
    assert str(copy) in capsys.readouterr().err
    assert copy.read_text().endswith("# mine\n")


def test_expand_and_check(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no datasets/ there
    path = str(options_folder() / "test/SRResNet/test_SRResNet_x3.yml")
    assert cli.main(["options", "--expand", path, "--method", "abc", "--force_yml", "num_gpu=0"]) == 0
    expanded = tmp_path / "expanded.yml"
    expanded.write_text(capsys.readouterr().out)
    assert read_options(expanded).values == read_options(path, method="abc", force=["num_gpu=0"]).values
    # Its folders and its checkpoint are not here.
    assert cli.main(["options", "--check", str(expanded), path]) == 2
    assert "datasets.test_1.dataroot_gt" in capsys.readouterr().err


def test_a_built_package_carries_its_option_files_and_types(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = [sys.executable, "-m", "bam_plugin.cli", "options", "--json"]
    result = subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    entries = json.loads(result.stdout)
    assert [entry["name"] for entry in entries] == [file.name for file in FILES]
    assert all(Path(entry["path"]).is_relative_to(tmp_path / "bam_plugin/options") for entry in entries)
    assert (tmp_path / "bam_plugin/py.typed").exists()
    assert not list(tmp_path.rglob("*.c"))


def test_the_documentation_names_every_key_and_method() -> None:
    import msgspec

    from bam_plugin.config import schema

    text = (ROOT / "docs/options.md").read_text()
    structs = [
        value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, msgspec.Struct)
    ]
    # The structs of memcached and the like are BasicSR's own matter.
    keys = {
        field.name for struct in structs if struct is not schema.Backend for field in msgspec.structs.fields(struct)
    }
    assert not [key for key in keys | set(schema.PATH_KEYS) | set(schema.OPTIMIZER_KEYS) if f"`{key}`" not in text]
    for file in FILES:
        assert not [method for method in file.methods if f"`{method}`" not in text]


def test_weights_that_a_training_starts_from_come_with_the_option_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in an installation from a wheel: nothing of the checkout is there but what `bam options --copy .` copies.
    copy_shipped(tmp_path)
    monkeypatch.chdir(tmp_path)
    named = [
        weights
        for file in FILES
        if (weights := (read_options(file.path).values.get("path") or {}).get("pretrain_network_g"))
        and not weights.startswith("experiments/")
    ]
    assert named
    assert all(Path(weights).is_file() for weights in named), named
