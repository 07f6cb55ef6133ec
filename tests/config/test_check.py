"""Option files: every mistake is named by its full key and place, and files expand to what BasicSR's parser reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.training_options import changed, tiny_options, write_options

from bam_plugin.config import OptionsError, load_options, prepare_arguments, read_options


def problems(path: str, **keywords: Any) -> dict[str, str]:
    """Key -> message of everything that is wrong in the file."""
    with pytest.raises(OptionsError) as raised:
        load_options(path, **{"is_train": True, **keywords})
    return {".".join(problem.key): problem.message for problem in raised.value.problems}


def test_a_good_file_passes_unchanged(tiny_pairs: Any, tmp_path: Path) -> None:
    options = tiny_options(tiny_pairs)
    assert load_options(write_options(options, tmp_path / "good.yml"), is_train=True).values == options


HABITS = {
    "val.val_freq": 5e3,  # !!float 5e3
    "logger.save_checkpoint_freq": 5e3,
    "logger.wandb": {"project": None, "resume_id": None},
    "datasets.train.use_shuffle": True,
    "datasets.val_2": {"name": "x", "type": "SingleImageDataset", "dataroot_lq": ".", "io_backend": {"type": "disk"}},
    "network_g": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "res_scale": 1, "rgb_mean": [0.4, 0.4, 0.4]},
    "train.optim_g.weight_decay": 0,
    "train.scheduler": {"type": "MultiStepLR", "milestones": [20], "gamma": 1},
    "train.pixel_opt": {"type": "CharbonnierLoss", "loss_weight": 1},
    "train.perceptual_opt": {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "range_norm": False},
    "model_type": "SRModel",
}


def test_the_habits_of_basicsrs_own_files_pass(tiny_pairs: Any, tmp_path: Path) -> None:
    load_options(write_options(changed(tiny_options(tiny_pairs), HABITS), tmp_path / "good.yml"), is_train=True)


MISTAKES = [
    # Misspelt, misplaced and invented keys, section by section.
    ({"model_typ": "SRModel"}, "model_typ", "did you mean model_type?"),
    ({"lr": 1.0e-4}, "lr", "belongs to train.optim_g"),
    ({"train.val_freq": 10}, "train.val_freq", "belongs to val"),
    ({"val.print_freq": 10}, "val.print_freq", "belongs to logger"),
    ({"network_g.crop_border": 4}, "network_g.crop_border", "belongs to val.metrics"),
    ({"train.ema_deca": 0.9}, "train.ema_deca", "did you mean ema_decay?"),
    ({"train.optim_g.beta": [0.5, 0.9]}, "train.optim_g.beta", "did you mean betas?"),
    ({"train.scheduler.period": [20]}, "train.scheduler.period", "did you mean periods?"),
    ({"train.pixel_opt.los_weight": 1.0}, "train.pixel_opt.los_weight", "did you mean loss_weight?"),
    ({"train.watch": {"nonfinit": "skip"}}, "train.watch.nonfinit", "did you mean nonfinite?"),
    ({"train.stages": {"binary_activation": 5}}, "train.stages.binary_activation", "did you mean binary_activations?"),
    ({"train.distill": {"path": "x.pth"}}, "train.distill.network", "missing"),
    ({"train.distill": {"network": {"type": "BRSN"}, "path": __file__}}, "train.distill.network.type", "mean BSRN?"),
    ({"train.distill": {"network": {"type": "BSRN"}, "path": "x.pth"}}, "train.distill.path", "not a file"),
    ({"datasets.train.use_flip": True}, "datasets.train.use_flip", "did you mean use_hflip?"),
    ({"datasets.train.io_backend.kind": "lmdb"}, "datasets.train.io_backend.kind", "valid here"),
    ({"datasets.vall": {}}, "datasets.vall", "train, val or val_N"),
    ({"network_g.num_featt": 8}, "network_g.num_featt", "did you mean num_feat?"),
    ({"val.metrics.psnr.test_y_chanel": True}, "val.metrics.psnr.test_y_chanel", "did you mean test_y_channel?"),
    ({"path.pretrain_network": "x.pth"}, "path.pretrain_network", "did you mean pretrain_network_g?"),
    ({"logger.print_frequency": 5}, "logger.print_frequency", "did you mean print_freq?"),
    # Values that a choice lacks, that a constructor refuses, or that nothing reads.
    ({"train.precision": "fp16"}, "train.precision", "'fp16' is no valid value; valid here: float32, bf16, bf16_all"),
    ({"dist_params": {"backend": "glo"}}, "dist_params.backend", "valid here: nccl, gloo, mpi"),
    ({"train.pixel_opt.reduction": "none"}, "train.pixel_opt.reduction", "valid here: mean, sum"),
    ({"train.optim_g.betas": [0.9]}, "train.optim_g", "refuses these options"),
    ({"train.optim_g.betas": [0.9, 1.5]}, "train.optim_g", "Invalid beta"),
    ({"logger.wandb": {"project": "x"}}, "logger.wandb.project", "pip install wandb"),
    (
        {"logger": {"print_freq": 1, "save_checkpoint_freq": 5, "use_tb_logger": False, "wandb": {"project": "x"}}},
        "logger.use_tb_logger",
        "must be true",
    ),
    (
        {"train.scheduler": {"type": "CooldownLR", "cooldown_iter": 21}, "train.total_iter": 20},
        "train.scheduler.cooldown_iter",
        "must lie in 1 .. train.total_iter, which is 20",
    ),
    ({"network_g": {"type": "BSRN", "binarizer": "dorefa", "alpha": "learned"}}, "network_g.alpha", "not accumulated"),
    (
        {"datasets.train.dataroot_gt": "datasets/classic/classic_HR.lmdb"},
        "datasets.train.dataroot_gt",
        "bam prepare classic",
    ),
    (
        {"datasets.val.dataroot_gt": "datasets/DIV2K_valid_crop256/GTmod4"},
        "datasets.val.dataroot_gt",
        "bam prepare classic",
    ),
    (
        {"datasets.train.dataroot_gt": "datasets/DIV2K/DIV2K_train_HR_sub.lmdb"},
        "datasets.train.dataroot_gt",
        "bam prepare div2k",
    ),
    ({"datasets.train.dataroot_gt": "datasets/mine"}, "datasets.train.dataroot_gt", "bam prepare folder"),
    # Names that nothing is registered under.
    ({"model_type": "BinarySRModl"}, "model_type", "did you mean BinarySRModel?"),
    ({"network_g.type": "BRSN"}, "network_g.type", "did you mean BSRN?"),
    ({"datasets.train.type": "PairedImgDataset"}, "datasets.train.type", "did you mean PairedImageDataset?"),
    ({"train.optim_g.type": "BinaryAdm"}, "train.optim_g.type", "did you mean BinaryAdam?"),
    ({"train.scheduler": {"type": "CosinLR"}}, "train.scheduler.type", "did you mean CosineLR?"),
    ({"train.pixel_opt.type": "L1"}, "train.pixel_opt.type", "did you mean L1Loss?"),
    ({"val.metrics.psnr.type": "psnr"}, "val.metrics.psnr.type", "calculate_psnr"),
    # Wrong types and values.
    ({"train.optim_g.lr": "2e-4"}, "train.optim_g.lr", "write 2.0e-4"),
    ({"train.optim_g.lr_mult": 3, "train.optim_g.weight_decay": "0"}, "train.optim_g.weight_decay", "without quotes"),
    ({"train.total_iter": "1e6"}, "train.total_iter", "write 1.0e+6"),
    ({"train.ema_decay": 1.5}, "train.ema_decay", "< 1.0"),
    ({"train.precision": "fp16"}, "train.precision", "'fp16'"),
    ({"num_gpu": "two"}, "num_gpu", "'two'"),
    ({"datasets.train.use_rot": "yes please"}, "datasets.train.use_rot", "`bool`"),
    ({"datasets.train.batch_size_per_gpu": 0}, "datasets.train.batch_size_per_gpu", ">= 1"),
    ({"network_g.num_feat": "8"}, "network_g.num_feat", "without quotes"),
    ({"network_g.beta": "spatal"}, "network_g", "'spatal'"),
    ({"val.metrics.psnr.crop_border": "4"}, "val.metrics.psnr.crop_border", "without quotes"),
    ({"val.metrics.psnr.better": "bigger"}, "val.metrics.psnr.better", "higher or lower"),
    ({"datasets.train.gt_size": 30}, "datasets.train.gt_size", "use 28"),
    # What cannot work together.
    ({"train.scheduler.periods": [15]}, "train.scheduler.periods", "sum to 15, but train.total_iter is 20"),
    ({"train.scheduler.periods": [10, 10]}, "train.scheduler.restart_weights", "give one each"),
    ({"train.scheduler": {"type": "MultiStepLR", "milestones": [30]}}, "train.scheduler.milestones", "never fall"),
    ({"train.total_epochs": 3}, "train", "total_epochs and total_iter"),
    ({"datasets.train.prefetch_mode": "cuda"}, "datasets.train.pin_memory", "must be true"),
    # What is missing.
    ({"train.total_iter": None}, "train.total_iter", "missing"),
    ({"train.pixel_opt": None}, "train.pixel_opt", "needs a loss"),
    ({"logger": None}, "logger", "a training needs it"),
    ({"datasets.train": None}, "datasets.train", "missing"),
    ({"datasets.train.gt_size": None}, "datasets.train.gt_size", "PairedPatchDataset needs it"),
    ({"datasets.val.io_backend": None}, "datasets.val.io_backend", "PairedImageDataset needs it"),
    ({"network_g.type": None}, "network_g.type", "registered types"),
    ({"train.scheduler.periods": None}, "train.scheduler.periods", "no default"),
    # Files.
    ({"datasets.train.dataroot_gt": "nowhere/HR.lmdb"}, "datasets.train.dataroot_gt", "nowhere/HR.lmdb does not exist"),
    ({"datasets.val.io_backend.type": "lmdb"}, "datasets.val.dataroot_gt", "must end in .lmdb"),
    (
        {"datasets.train.io_backend.type": "disk", "datasets.train.type": "RealESRGANPairedDataset"},
        "datasets.train.dataroot_gt",
        "set it to lmdb",
    ),
    ({"path.resume_state": "nowhere.state"}, "path.resume_state", "not a file"),
]


@pytest.mark.parametrize(("changes", "key", "message"), MISTAKES, ids=[key for _, key, _ in MISTAKES])
def test_each_mistake_is_named_with_its_key_and_the_next_step(
    changes: dict[str, Any], key: str, message: str, tiny_pairs: Any, tmp_path: Path
) -> None:
    found = problems(write_options(changed(tiny_options(tiny_pairs), changes), tmp_path / "bad.yml"))
    assert message in found[key]
    # One mistake, one message (a wrong backend concerns both folders).
    assert len(found) == (2 if "io_backend.type" in next(iter(changes)) else 1)


def test_all_mistakes_come_at_once_with_file_and_line(tiny_pairs: Any, tmp_path: Path) -> None:
    path = write_options(tiny_options(tiny_pairs), tmp_path / "bad.yml")
    text = Path(path).read_text().replace("lr: 0.001", "lr: 1e-3").replace("scale: 4", "scal: 4")
    Path(path).write_text(text)
    with pytest.raises(OptionsError) as raised:
        load_options(path, is_train=True, force=["train:total_iter=99"])
    lines = str(raised.value).splitlines()
    line_of = {text.split(":")[0].strip(): number for number, text in enumerate(text.splitlines(), start=1)}
    assert any(line.startswith(f"  scal ({path}:{line_of['scal']})") for line in lines)
    assert any(line.startswith(f"  train.optim_g.lr ({path}:{line_of['lr']})") for line in lines)
    assert any(line.startswith("  train.scheduler.periods") and "99" in line for line in lines)


def test_options_of_other_models_and_datasets_are_known_from_their_source(tiny_pairs: Any, tmp_path: Path) -> None:
    gan = {
        "model_type": "RealESRGANModel",
        "resize_prob": [0.2, 0.7, 0.1],
        "l1_gt_usm": True,
        "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3},
        "train.gan_opt": {"type": "GANLoss", "gan_type": "vanila"},
        "train.optim_d": {"type": "Adam", "lr": "1e-4"},
        "datasets.val.mean": [0.5, 0.5, 0.5],
        "datasets.val.meta_info": "x",
        "resize_prop": [0.2],
    }
    found = problems(write_options(changed(tiny_options(tiny_pairs), gan), tmp_path / "gan.yml"))
    assert set(found) == {"train.optim_d.lr", "datasets.val.meta_info", "resize_prop"}
    assert "did you mean resize_prob" in found["resize_prop"]


def test_a_test_leaves_out_missing_sets_but_not_all(tiny_pairs: Any, tmp_path: Path, caplog: Any) -> None:
    options = tiny_options(tiny_pairs)
    present = options["datasets"]["val"]
    missing = {**present, "name": "Urban100", "dataroot_gt": "nowhere/Urban100"}
    options["datasets"] = {"test_1": present, "test_2": missing}
    loaded = load_options(write_options(options, tmp_path / "test.yml"), is_train=False)
    assert list(loaded.values["datasets"]) == ["test_1"]
    assert "datasets.test_2.dataroot_gt" in caplog.text
    options["datasets"] = {"test_2": missing}
    found = problems(write_options(options, tmp_path / "test.yml"), is_train=False)
    assert "bam prepare benchmark" in found["datasets.test_2.dataroot_gt"]


@pytest.mark.parametrize(
    ("network", "key", "message"),
    [
        ({"host": {"type": "EDSRR"}}, "network_g.host.type", "did you mean EDSR?"),
        ({"host": {"type": "EDSR", "upscal": 4}}, "network_g.host.upscal", "did you mean upscale?"),
        ({"recipe": {"binarzer": "bam"}}, "network_g.recipe.binarzer", "did you mean binarizer?"),
        ({"recipe": {"keep_first_last": "yes"}}, "network_g.recipe.keep_first_last", "`bool`"),
        ({"recipe": {"binarizer": "bamm"}}, "network_g.recipe.binarizer", "did you mean bam?"),
        ({"recipe": {"weight_binarizer": "xnr"}}, "network_g.recipe.weight_binarizer", "did you mean xnor?"),
        (
            {"recipe": {"binarizer": "abc", "weight_options": {"bses": 2}}},
            "network_g.recipe.weight_options.bses",
            "did you mean bases?",
        ),
        (
            {"recipe": {"activation_options": {"estimtor": "clip"}}},
            "network_g.recipe.activation_options.estimtor",
            "did you mean estimator?",
        ),
    ],
)
def test_a_host_and_its_recipe_are_checked(
    network: dict[str, Any], key: str, message: str, tiny_pairs: Any, tmp_path: Path
) -> None:
    options = tiny_options(tiny_pairs)
    host = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 4}
    options["network_g"] = {"type": "Binarized", "host": host, "recipe": {}}
    path = write_options(options, tmp_path / "mixed.yml")
    load_options(path, is_train=True)
    options["network_g"] = {**options["network_g"], **network}
    options["network_g"]["host"] = {**host, **network.get("host", {})}
    assert message in problems(write_options(options, tmp_path / "mixed.yml"))[key]


@pytest.mark.parametrize(
    ("network", "key", "message"),
    [
        ({"binarizer": "bamm"}, "binarizer", "did you mean bam?"),
        ({"binarizer": ["bam"]}, "binarizer", "`str | null`"),
        ({"weight_binarizer": "birael"}, "weight_binarizer", "did you mean bireal?"),
        ({"activation_binarizer": "bnsign"}, "activation_binarizer", "did you mean bn_sign?"),
        ({"binarizer": "abc", "weight_options": {"bses": 2}}, "weight_options.bses", "did you mean bases?"),
        ({"weight_binarizer": "abc", "weight_options": {"bases": "2"}}, "weight_options.bases", "without quotes"),
        ({"binarizer": "dorefa", "weight_options": {"bases": 2}}, "weight_options.bases", "nothing is valid here"),
        ({"weight_options": {"alpha": "learnd"}}, "weight_options", "'learned'"),
        ({"weight_options": {"group_index": 1}}, "weight_options.group_index", "nothing reads"),
        ({"activation_options": {"num_feat": 8}}, "activation_options.num_feat", "nothing reads"),
        ({"binarizer": "abc", "activation_options": {"base": 2}}, "activation_options.base", "did you mean bases?"),
    ],
)
def test_binarizers_and_their_options_are_checked(
    network: dict[str, Any], key: str, message: str, tiny_pairs: Any, tmp_path: Path
) -> None:
    options = tiny_options(tiny_pairs)
    base = {"type": "SRResNet", "num_feat": 8, "num_block": 1, "upscale": 4, "binarizer": "bam"}
    options["network_g"] = base | {"weight_options": {"alpha": "learned"}}
    path = write_options(options, tmp_path / "network.yml")
    load_options(path, is_train=True)
    options["network_g"] = base | network
    path = write_options(options, tmp_path / "network.yml")
    found = problems(path)
    assert list(found) == [f"network_g.{key}"] and message in found[f"network_g.{key}"]
    with pytest.raises(OptionsError) as raised:
        load_options(path, is_train=True)
    last = key.rpartition(".")[2]
    numbers = [
        number
        for number, line in enumerate(Path(path).read_text().splitlines(), start=1)
        if line.strip().startswith(f"{last}:")
    ]
    assert any(f"network_g.{key} ({path}:{number})" in str(raised.value) for number in numbers)


def test_more_gpus_than_there_are(tiny_pairs: Any, tmp_path: Path) -> None:
    import torch

    options = changed(tiny_options(tiny_pairs), {"num_gpu": torch.cuda.device_count() + 1})
    found = problems(write_options(options, tmp_path / "gpu.yml"))
    assert f"--force_yml num_gpu={torch.cuda.device_count()}" in found["num_gpu"]


BASE = """
scale: 4
title: plain
datasets: {val: {root: 'LR_x${scale}', crop: '${scale}'}}
train: {scheduler: {type: A, milestones: [1, 2]}, loss: {type: L1, weight: 1}}
"""
FILE = """
include: base.yml
name: Net_${method}_x${scale}
method: bam
train: {scheduler: {type: B, periods: [3]}, loss: {weight: 2}}
methods:
  bam: {about: the paper, network: {kind: bam}}
  bnn: {network: {kind: bnn}, train: {loss: {weight: 5}}}
"""


@pytest.fixture
def layered(tmp_path: Path) -> Path:
    (tmp_path / "base.yml").write_text(BASE)
    (tmp_path / "file.yml").write_text(FILE)
    return tmp_path / "file.yml"


def test_includes_methods_and_references(layered: Path) -> None:
    loaded = read_options(layered)
    assert loaded.values == {
        "scale": 4,
        "title": "plain",
        # A text that is one reference keeps the type of the value.
        "datasets": {"val": {"root": "LR_x4", "crop": 4}},
        # Another type replaces the whole mapping, the same or no type merges.
        "train": {"scheduler": {"type": "B", "periods": [3]}, "loss": {"type": "L1", "weight": 2}},
        "name": "Net_bam_x4",
        "network": {"kind": "bam"},
    }
    assert loaded.methods == {"bam": "the paper", "bnn": ""}
    assert loaded.origins["datasets", "val", "root"] == f"{layered.parent / 'base.yml'}:4"
    assert loaded.origins["network", "kind"] == f"{layered}:7"


@pytest.mark.parametrize("how", [{"method": "bnn"}, {"force": ["method=bnn"]}])
def test_another_method_and_forced_values(layered: Path, how: dict[str, Any]) -> None:
    force = [*how.get("force", []), "scale=2", "train:loss:weight=[1, 2.5]", "title=none", "new:key=1.0e-4"]
    values = read_options(layered, method=how.get("method"), force=force).values
    assert values["network"] == {"kind": "bnn"}
    assert values["name"] == "Net_bnn_x2"
    assert values["datasets"]["val"] == {"root": "LR_x2", "crop": 2}
    assert values["train"]["loss"] == {"type": "L1", "weight": [1, 2.5]}
    assert values["title"] is None
    assert values["new"] == {"key": 1e-4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: nowhere.yml", "include names nowhere.yml"),
        ("include: file.yml", "includes itself"),
        ("name: a\nname: b", ":2: name is given twice"),
        ("train: {a: 1, b: 2, a: 3}", "train.a is given twice"),
        ("name: ${nam}", "did you mean name?|refers to"),
        ("name: ${name}", "refers to itself"),
        ("name: ${scale}\nscale: ${name}", "refers to itself"),
        ("method: bam", "no methods"),
        ("method: ban\nmethods: {bam: {}}", "did you mean bam?"),
        ("methods: {bam: {}}", "name one"),
        ("methods: [bam]", "methods must map"),
        ("- a", "must be a YAML mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_malformed_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yml"
    path.write_text(text)
    with pytest.raises(OptionsError, match=message) as raised:
        read_options(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("entry", ["scale", "=3", "train::x=1", "scale:deeper=1", "scale=["])
def test_malformed_forced_entries_are_named(entry: str, layered: Path) -> None:
    with pytest.raises(OptionsError, match="--force_yml"):
        read_options(layered, force=[entry])


def test_prepared_arguments_are_read_by_basicsr_itself(
    tiny_pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from basicsr.utils.options import parse_options

    options = {**tiny_options(tiny_pairs), "methods": {"small": {"name": "tiny_${method}"}}, "method": "small"}
    path = write_options(options, tmp_path / "file.yml")
    argv = ["--launcher", "none", "-opt", path, "--force_yml", "train:total_iter=7", "scale=4", "--auto_resume"]
    prepared = prepare_arguments(argv, is_train=True, folder=tmp_path / "expanded")
    assert prepared == ["-opt", str(tmp_path / "expanded" / "file.yml"), "--launcher", "none", "--auto_resume"]
    monkeypatch.setattr(sys, "argv", ["train.py", *prepared])
    opt, args = parse_options(str(tmp_path), is_train=True)
    assert opt["name"] == "tiny_small"
    assert opt["train"]["total_iter"] == 7
    assert opt["network_g"] == options["network_g"]
    assert opt["train"]["optim_g"]["lr"] == 0.001
    assert args.auto_resume
    # The expanded file says where it came from, because BasicSR copies it into the experiment.
    text = Path(prepared[1]).read_text()
    assert text.splitlines()[0] == f"# Expanded from {path}, method small, --force_yml train:total_iter=7 scale=4"
    assert not {"include", "method", "methods"} & set(yaml.safe_load(text))


def test_every_optimizer_passes_with_its_defaults() -> None:
    from bam_plugin.config.training import _check_optimizer
    from bam_plugin.optim import OPTIMIZER_REGISTRY

    for name, optimizer in OPTIMIZER_REGISTRY:
        assert not list(_check_optimizer({"type": name, "lr": 1.0e-3}, ("optim_g",), optimizer, ())), name


@pytest.mark.parametrize(
    ("scheduler", "force", "found"),
    [
        ({"milestones": [50, 75]}, ["train:total_iter=10"], {"milestones": [5, 8]}),
        ({"periods": [33, 67]}, ["train:total_iter=10"], {"periods": [4, 7]}),
        ({"cooldown_iter": 40}, ["train:total_iter=10"], {"cooldown_iter": 4}),
        ({"milestones": [50]}, ["train:total_iter=200"], {"milestones": [50]}),  # longer: the rate may stay
        ({"milestones": [50]}, ["train:total_iter=10", "train:scheduler:milestones=[2]"], {"milestones": [2]}),
        ({"milestones": [50]}, ["train:total_iter=x"], {"milestones": [50]}),
    ],
)
def test_a_shortened_run_keeps_the_shape_of_its_schedule(
    tmp_path: Path, scheduler: dict[str, Any], force: list[str], found: dict[str, Any]
) -> None:
    path = write_options({"train": {"total_iter": 100, "scheduler": scheduler}}, tmp_path / "a.yml")
    loaded = read_options(path, force=force)
    assert loaded.values["train"]["scheduler"] == found
    assert bool(loaded.notes) == (found not in (scheduler, {"milestones": [2]}))
    if loaded.notes:
        assert "train.total_iter is 10 instead of 100, so train.scheduler." in loaded.notes[0]
