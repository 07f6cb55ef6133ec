"""BinarySRModel by itself: the average, micro-batches, precision, watches, health, validation."""

from __future__ import annotations

import logging
from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers import training_options
from helpers.training_runs import iterate, make_batch, make_model
from torch import nn

import bam_plugin.archs
import bam_plugin.models  # noqa: F401
from bam_plugin.data.metrics import calculate_psnr_y
from bam_plugin.errors import BamError
from bam_plugin.models.binary_sr_model import BinarySRModel
from bam_plugin.models.devices import check_devices
from bam_plugin.models.watch import PlateauWatch, TrainingDivergedError, TrainingPlateauError
from bam_plugin.nn import BinaryConv2d
from bam_plugin.nn.fast import fused
from bam_plugin.train import testing as testing
from bam_plugin.train.training import train


def test_average_moves_all_parameters_and_copies_buffers(tiny_pairs):
    model = make_model(tiny_pairs, ema_decay=0.75)
    start = {name: value.clone() for name, value in model.net_g.state_dict().items()}
    assert all(torch.equal(value, start[name]) for name, value in model.net_g_ema.state_dict().items())
    iterate(model, 1, make_batch())
    now, average = model.net_g.state_dict(), model.net_g_ema.state_dict()
    parameters = {name for name, _ in model.net_g.named_parameters()}
    assert any("conv3.weight" in name for name in parameters)
    for name, value in average.items():
        expected = 0.75 * start[name] + 0.25 * now[name] if name in parameters else now[name]
        torch.testing.assert_close(value, expected)
    running = [name for name in now if name.endswith("running_mean")]
    assert running and all(not torch.equal(now[name], start[name]) for name in running)


def test_the_average_can_have_running_statistics_of_its_own(tiny_pairs):
    models = []
    for mode in ("reestimate", "copy"):
        torch.manual_seed(5)
        models.append(make_model(tiny_pairs, ema_decay=0.75, ema_bn=mode, ema_bn_freq=2))
    model, copying = models
    start = deepcopy(model.net_g_ema)
    iterate(model, 1, make_batch())
    statistics = dict(model.net_g_ema.named_buffers())
    assert statistics and all(torch.equal(value, statistics[name]) for name, value in start.named_buffers())
    iterate(model, 2, make_batch())
    # The same done by hand with the averaged parameters.
    with torch.no_grad():
        for own, averaged in zip(start.parameters(), model.net_g_ema.parameters(), strict=True):
            own.copy_(averaged)
        start.train()(make_batch()["lq"])
    for name, value in start.state_dict().items():
        torch.testing.assert_close(model.net_g_ema.state_dict()[name], value, msg=name)
    assert not any(module.training for module in model.net_g_ema.modules())
    # Nothing of the training itself changes.
    for iteration in (1, 2):
        iterate(copying, iteration, make_batch())
    for name, value in copying.net_g.state_dict().items():
        assert torch.equal(value, model.net_g.state_dict()[name]), name


def test_the_progress_of_an_iteration_sets_its_gradient(tiny_pairs):
    gradients = []
    for total in (20, 1):
        torch.manual_seed(5)
        model = make_model(tiny_pairs, {"activation_estimator": "ede"}, total_iter=total)
        iterate(model, 1, make_batch())
        assert model.net_g.body[0].blocks[0].conv3.binarize_activation.progress == 1 / total
        gradients.append(model.net_g.head[0].weight.grad.clone())
    # Equal networks and batches: nothing but the estimator's shape differs.
    assert not torch.allclose(*gradients, rtol=0.1)


def test_micro_batches_give_the_gradient_of_the_batch(tiny_pairs):
    gradients = []
    for accumulate in (1, 3):
        # No body, hence no batch normalization, whose statistics would differ.
        torch.manual_seed(0)
        model = make_model(tiny_pairs, network={"num_hpb": 0}, accumulate=accumulate, optim_g={"type": "SGD", "lr": 0})
        model.update_learning_rate(1)
        model.feed_data(make_batch(5))  # parts of 2, 2 and 1
        losses = model._backward()
        gradients.append((float(losses["l_pix"]), [parameter.grad for parameter in model.net_g.parameters()]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_clipped_together(tiny_pairs):
    model = make_model(tiny_pairs, grad_clip=1e-3, optim_g={"type": "SGD", "lr": 1.0}, ema_decay=0)
    before = torch.cat([p.detach().flatten().clone() for p in model.net_g.parameters()])
    iterate(model, 1, make_batch())
    after = torch.cat([p.detach().flatten() for p in model.net_g.parameters()])
    assert float((after - before).double().norm()) == pytest.approx(1e-3, rel=1e-3)
    assert model.log_dict["grad_norm"] > 1e-3


@pytest.mark.parametrize(
    ("precision", "head", "binary"),
    [
        ("float32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.float32),
        ("bf16_all", torch.bfloat16, torch.bfloat16),
    ],
)
def test_precision_of_float_and_binary_parts(tiny_pairs, precision, head, binary):
    model = make_model(tiny_pairs, precision=precision, channels_last=True)
    found = {}
    net = model.net_g
    net.head[0].register_forward_hook(lambda module, inputs, output: found.update(head=output.dtype))
    conv = next(module for module in net.modules() if isinstance(module, BinaryConv2d))
    conv.register_forward_hook(lambda module, inputs, output: found.update(binary=output.dtype))
    # The fast path computes binary convolutions in float32 in every precision.
    with fused.switched(False):
        iterate(model, 1, make_batch())
    assert found == {"head": head, "binary": binary}
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in net.parameters())
    model.test()
    assert model.output.dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "supported", "warned"), [("bf16", False, True), ("bf16", True, False), ("float32", False, False)]
)
def test_emulated_bfloat16_is_told(tiny_pairs, caplog, monkeypatch, precision, supported, warned):
    monkeypatch.setattr(fused, "cpu_multiplies_bfloat16", lambda: supported)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    logger = logging.getLogger("basicsr")  # hands nothing on to caplog's own root
    logger.addHandler(caplog.handler)
    try:
        make_model(tiny_pairs, precision=precision)
    finally:
        logger.removeHandler(caplog.handler)
    assert ("set train.precision to float32" in caplog.text) == warned


def spoil_body_end(model, batch):
    model.net_g.body_end.bias.data[1] = float("inf")


def spoil_target(model, batch):
    batch["gt"][0, 0, 0, 0] = float("nan")


def spoil_gradient(model, batch):
    model.net_g.body_end.weight.register_hook(lambda gradient: gradient * float("nan"))


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (spoil_body_end, r"the output of body_end \(Conv2d\)"),
        (spoil_target, "the batch"),
        (spoil_gradient, "the gradient of body_end.weight"),
    ],
)
@pytest.mark.parametrize(("action", "clip"), [("stop", None), ("skip", 0.1)])
def test_non_finite_iterations_leave_no_trace_and_name_the_layer(tiny_pairs, caplog, spoil, where, action, clip):
    model = make_model(tiny_pairs, watch={"nonfinite": action, "max_skipped": 1}, grad_clip=clip)
    logging.getLogger("basicsr").propagate = True
    batch = make_batch()
    iterate(model, 1, batch)
    spoil(model, batch)
    nets = (model.net_g, model.net_g_ema)
    before = [deepcopy(net.state_dict()) for net in nets]
    optimizer = deepcopy(model.optimizer_g.state_dict()["state"])
    if action == "stop":
        with pytest.raises(TrainingDivergedError, match=where):
            iterate(model, 2, batch)
    else:
        iterate(model, 2, batch)
        assert "skipped" in caplog.text
        with pytest.raises(TrainingDivergedError, match=f"{where}.*1 steps before"):
            iterate(model, 3, batch)
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    for key, state in model.optimizer_g.state_dict()["state"].items():
        assert all(torch.equal(value, optimizer[key][name]) for name, value in state.items())


def test_plateau_watch_compares_windows():
    def run(watch, losses):
        return [watch.update(loss, index, lambda: "details") for index, loss in enumerate(losses, start=1)]

    losses = [4.0, 2.0, 2.0, 1.0, 1.5, 1.49, 1.6, 1.4, 0.1, 0.1]  # means of pairs: 3, 1.5, 1.495, 1.5, 0.1
    messages = run(PlateauWatch(window=2, patience=2, min_gain=0.01), losses)
    assert [index for index, message in enumerate(messages, start=1) if message] == [8]
    assert "details" in messages[7] and "iteration 8" in messages[7]
    halves = [PlateauWatch(window=2, patience=2, min_gain=0.01) for _ in range(2)]
    run(halves[0], losses[:5])
    halves[1].load_state_dict(halves[0].state_dict())
    assert [bool(message) for message in run(halves[1], losses[5:])] == [False, False, True, False, False]
    with pytest.raises(TrainingPlateauError, match=r"1\.5"):
        run(PlateauWatch(action="stop", window=2, patience=2, min_gain=0.01), losses)


class Recorder:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, name, value, iteration):
        self.scalars.setdefault(name, []).append((iteration, value))


def test_health_measures_each_binary_layer(tiny_pairs):
    # The second micro-batch of an iteration must not count as a second measurement.
    model = make_model(
        tiny_pairs, network={"alpha": "learned"}, health_freq=2, accumulate=2, optim_g={"type": "SGD", "lr": 0}
    )
    model.tb_logger = recorder = Recorder()
    net = model.net_g
    conv = net.body[0].blocks[0].conv3
    norm = conv.binarize_activation.norm
    with torch.no_grad():
        net.body[0].blocks[0].beta1.scale.fill_(0.25)
        norm.weight.fill_(1e-3)
        norm.bias.copy_(torch.tensor([5.0, -5.0, *[0.0] * 6]))
    iterate(model, 1, make_batch())
    assert not recorder.scalars
    iterate(model, 2, make_batch())
    layer = "body.0.blocks.0.conv3"
    assert not any(name.startswith("health/flips") for name in recorder.scalars)
    assert recorder.scalars[f"health/dead/{layer}"] == [(2, 0.25)]
    assert recorder.scalars[f"health/saturated/{layer}"] == [(2, 0.25)]
    assert recorder.scalars["health/beta/body.0.blocks.0.beta1"] == [(2, 0.25)]
    assert recorder.scalars[f"health/alpha/{layer}/0"] == [(2, 1.0)]
    with torch.no_grad():
        conv.weight[0].neg_()  # one filter of eight
    iterate(model, 4, make_batch())
    assert recorder.scalars[f"health/flips/{layer}"] == [(4, 0.125)]
    assert recorder.scalars["health/flips/body.0.blocks.0.conv1_a"] == [(4, 0.0)]
    assert recorder.scalars["health/throughput/images_per_s"][0][1] > 0
    flips = [values[0][1] for name, values in recorder.scalars.items() if name.startswith("health/flips/")]
    assert len(flips) == 6 and model.log_dict["flips"] == pytest.approx(sum(flips) / 6)


def test_health_does_not_change_the_training(tiny_pairs):
    states = []
    for freq in (0, 1):
        torch.manual_seed(0)
        model = make_model(tiny_pairs, health_freq=freq)
        for iteration in (1, 2, 3):
            iterate(model, iteration, make_batch())
        states.append(model.net_g.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_wrong_options_are_explained(tiny_pairs):
    for options, message in (
        ({"precision": "half"}, "bf16"),
        ({"accumulate": 0}, "accumulate"),
        ({"watch": {"nonfinite": "ignore"}}, "nonfinite"),
        ({"watch": {"plateau": "ignore"}}, "plateau"),
    ):
        with pytest.raises(BamError, match=message):
            make_model(tiny_pairs, **options)
    opt = training_options.tiny_options(tiny_pairs)
    opt.update(is_train=True, dist=False, rank=0, world_size=1, num_gpu=1)
    if not torch.cuda.is_available():
        with pytest.raises(BamError, match="num_gpu"):
            BinarySRModel(opt)


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"stages": {"float": 3}}])
def test_several_gpus_in_one_process_are_refused_where_they_cannot_work(monkeypatch, options):
    opt = {"is_train": True, "dist": False, "num_gpu": 2, "train": options}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BamError, match=r"nproc_per_node=2"):
        check_devices(opt)
    for works in ({"num_gpu": 1}, {"dist": True}, {"train": {"precision": "bf16_all"}}):
        check_devices({**opt, **works})


def literature_metrics() -> dict:
    return {
        "psnr": {"type": "calculate_psnr_y", "crop_border": 4},
        "ssim": {"type": "calculate_ssim_y", "crop_border": 4},
        "psnr_basicsr": {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": True},
    }


def test_training_and_testing_through_the_pipelines(tiny_pairs, tmp_path, capsys, monkeypatch):
    """YAML -> LMDB -> train -> checkpoint -> test: pictures, metrics per image, a report; a grey image stays grey."""
    import cv2

    options = training_options.tiny_options(tiny_pairs)
    options["logger"]["pbar"] = True
    train(["-opt", training_options.write_options(options, tmp_path / "train.yml")], tmp_path)
    assert "20/20" in capsys.readouterr().err
    assert list((tmp_path / "tb_logger/tiny").glob("events*"))

    folders = {}
    for side, folder in (("dataroot_gt", tiny_pairs.gt_folder), ("dataroot_lq", tiny_pairs.lq_folder)):
        folders[side] = tmp_path / side
        folders[side].mkdir()
        colour = cv2.imread(str(folder / "image00.png"))
        cv2.imwrite(str(folders[side] / "colour.png"), colour)
        cv2.imwrite(str(folders[side] / "grey.png"), cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY))
    config = {key: value for key, value in options.items() if key not in ("train", "logger")}
    config["name"] = "BSRN_bam_x4"
    config["datasets"] = {
        "test": {"name": "Set5", "type": "BenchmarkDataset", **{side: str(path) for side, path in folders.items()}}
    }
    model = tmp_path / "experiments/tiny/models/net_g_20.pth"
    config["path"] = {"pretrain_network_g": str(model), "param_key_g": "params_ema", "strict_load_g": True}
    config["val"] = {"save_img": True, "metrics": literature_metrics()}
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert testing.main(["-opt", training_options.write_options(config, tmp_path / "test.yml")]) == 0
    printed = capsys.readouterr().out
    results = tmp_path / "results/BSRN_bam_x4"
    assert printed == (results / "results.md").read_text()
    assert "BSRN (paper)" in printed and "31.35" in printed

    run = testing.test(["-opt", str(tmp_path / "test.yml")], tmp_path)
    records = {record["image"]: record for record in run.images["Set5"]}
    assert set(records) == {"colour", "grey"}
    for name, record in records.items():
        picture = cv2.imread(str(results / f"visualization/Set5/{name}_BSRN_bam_x4.png"))
        target = cv2.imread(str(folders["dataroot_gt"] / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (64, 64, 3)
        assert record["psnr"] == pytest.approx(calculate_psnr_y(picture, target, 4), abs=1e-9)
    # By BasicSR's metric a grey image is measured as grey, too: nearly the mean of squares over the grey values.
    grey_picture = cv2.imread(str(results / "visualization/Set5/grey_BSRN_bam_x4.png"), cv2.IMREAD_GRAYSCALE)
    error = (grey_picture.astype(float) - target.astype(float))[4:-4, 4:-4] if target.ndim == 2 else None
    assert records["grey"]["psnr_basicsr"] == pytest.approx(10 * np.log10(255**2 / np.mean(error**2)), abs=0.1)
    assert abs(records["colour"]["psnr_basicsr"] - records["colour"]["psnr"]) < 0.1
    assert records["colour"]["psnr"] > records["grey"]["psnr"] + 1


def test_empty_validation_set_is_named(tiny_pairs):
    from torch.utils.data import DataLoader, TensorDataset

    dataset = TensorDataset(torch.zeros(0))
    dataset.opt = {"name": "nothing"}
    with pytest.raises(BamError, match="nothing"):
        make_model(tiny_pairs).nondist_validation(DataLoader(dataset), 1, None, False)


def test_bop_average_starts_from_the_signs(tiny_pairs):
    from basicsr.utils.registry import ARCH_REGISTRY

    if "SignNetForBop" not in ARCH_REGISTRY:

        @ARCH_REGISTRY.register()
        class SignNetForBop(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = BinaryConv2d(in_channels=3, out_channels=48, weight_binarizer="bnn")

            def forward(self, x):
                return nn.functional.pixel_shuffle(self.conv(x), 4)

    opt = training_options.tiny_options(
        tiny_pairs, optim_g={"type": "Bop", "others": {"type": "Adam", "lr": 0.01}}, scheduler={"type": "CosineLR"}
    )
    opt.update(is_train=True, dist=False, rank=0, world_size=1, network_g={"type": "SignNetForBop"})
    model = BinarySRModel(opt)
    assert [type(optimizer).__name__ for optimizer in model.optimizers] == ["Bop", "Adam"]
    assert len(model.schedulers) == 2
    assert set(model.net_g_ema.conv.weight.unique().tolist()) == {-1.0, 1.0}
    iterate(model, 1, make_batch())


def test_all_options_of_the_model_pass_the_check_of_option_files(tiny_pairs, tmp_path):
    from bam_plugin.config import OptionsError, load_options

    teacher = tmp_path / "teacher.pth"
    teacher.touch()
    options = training_options.tiny_options(
        tiny_pairs,
        optim_g={
            "type": "BinaryAdam",
            "lr": 1e-3,
            "lr_mult": {"latent": 0.5},
            "latent_clip": 1.5,
            "rules": [{"match": "norm", "lr_mult": 2}],
        },
        scheduler={"type": "HalvingLR", "every_epochs": 2},
        iters_per_epoch=4,
        warmup_epochs=1,
        precision="bf16",
        channels_last=True,
        accumulate=2,
        grad_clip=0.1,
        sync_bn=True,
        health_freq=5,
        stages={"float": 2, "binary_activations": 2},
        distill={"network": {"type": "BSRN"}, "path": str(teacher), "feature_weight": 1.0, "features": ["body"]},
        watch={"nonfinite": "skip", "max_skipped": 3, "plateau": "warn", "plateau_window": 10},
    )
    file = training_options.write_options(options, tmp_path / "all.yml")
    load_options(file, is_train=True)
    options["train"]["acumulate"] = options["train"].pop("accumulate")
    with pytest.raises(OptionsError, match="acumulate"):
        load_options(training_options.write_options(options, tmp_path / "wrong.yml"), is_train=True)
