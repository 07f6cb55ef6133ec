from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

from bam_plugin.cli import main
from bam_plugin.nn import BinaryConv2d, LBBlock
from bam_plugin.optim import (
    KINDS,
    OPTIMIZER_REGISTRY,
    BinaryAdam,
    Bop,
    Bop2ndOrder,
    Rule,
    assign,
    build_optimizers,
    parameter_kinds,
    resume_optimizer,
)
from bam_plugin.optim.build import depends_on_magnitude
from bam_plugin.optim.errors import OptimizerError


class Net(nn.Module):
    """One parameter of every kind at least."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3)
        self.head_norm = nn.BatchNorm2d(4)
        self.block = LBBlock(num_feat=4, alpha="learned", conv_options={"output_scale": "channel"})


class SignNet(nn.Module):
    """A network whose binary weights need no magnitude (BNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = BinaryConv2d(in_channels=2, out_channels=3, weight_binarizer="bnn")
        self.tail = nn.Conv2d(3, 3, 1)


def by_group(optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    return {group["name"]: group for group in optimizer.param_groups}


def test_every_torch_optimizer_is_registered_and_listed(capsys):
    expected = {name for name, value in vars(torch.optim).items() if isinstance(value, type)} - {"Optimizer", "LBFGS"}
    assert expected <= set(OPTIMIZER_REGISTRY.keys())
    assert main(["optimizers", "--json"]) == 0
    infos = json.loads(capsys.readouterr().out)
    assert expected | {"BinaryAdam", "Bop", "Bop2ndOrder"} == {info["name"] for info in infos}
    assert all(info["description"] for info in infos)
    assert next(info for info in infos if info["name"] == "Bop")["defaults"] == {"lr": 1e-4, "threshold": 1e-8}
    assert main(["optimizers"]) == 0
    assert "threshold" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax", "SGD", "ASGD", "RMSprop", "Rprop", "NAdam", "RAdam"])
def test_torch_optimizers_take_all_parameters_in_one_group(name):
    net = Net()
    (optimizer,) = build_optimizers(net, {"type": name, "lr": 0.01})
    assert type(optimizer).__name__ == name
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]


def test_kinds_of_a_network():
    kinds = parameter_kinds(Net())
    found = {kind: {name for name, each in kinds.items() if each == kind} for kind in KINDS}
    convs = ("conv3", "conv1_a", "conv1_b")
    assert found["latent"] == {f"block.{conv}.weight" for conv in convs}
    assert found["alpha"] == {f"block.{conv}.binarize_weight.alpha" for conv in convs}
    assert found["beta"] == {"block.beta1.scale", "block.beta2.scale"}
    assert found["scale"] == {f"block.{conv}.output_scale" for conv in convs}
    assert found["threshold"] == {
        f"block.{conv}.binarize_activation.norm.{end}" for conv in convs for end in ("weight", "bias")
    }
    assert found["norm"] == {"head_norm.weight", "head_norm.bias"}
    assert found["float"] == {"head.weight", "head.bias"}


def test_binary_adam_groups_by_kind(caplog):
    with caplog.at_level(logging.INFO, logger="basicsr"):
        logging.getLogger("basicsr").propagate = True
        options = {"type": "BinaryAdam", "lr": 0.01, "weight_decay": 0.5, "lr_mult": {"latent": 0.1, "beta": 3}}
        (optimizer,) = build_optimizers(Net(), {**options, "latent_clip": 0.25})
    groups = by_group(optimizer)
    assert set(groups) == set(KINDS)
    assert {name: round(group["lr"], 9) for name, group in groups.items()} == {
        **dict.fromkeys(KINDS, 0.01), "latent": 0.001, "beta": 0.03,
    }  # fmt: skip
    assert {name for name, group in groups.items() if group["weight_decay"]} == {"float"}
    assert {name: group["clip"] for name, group in groups.items() if group["clip"] is not None} == {"latent": 0.25}
    assert "group [latent]: 3 tensors, 176 parameters" in caplog.text


def test_own_rules_come_before_the_kinds():
    rules = [{"match": "re:^head", "lr_mult": 0.5, "weight_decay": 0.1}, {"match": ["alpha", "beta"], "lr_mult": 2}]
    (optimizer,) = build_optimizers(Net(), {"type": "AdamW", "lr": 1.0, "weight_decay": 0.0, "rules": rules})
    groups = by_group(optimizer)
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "re:^head": (0.5, 0.1), "alpha, beta": (2.0, 0.0), "rest": (1.0, 0.0),
    }  # fmt: skip
    assert [len(groups[name]["params"]) for name in ("re:^head", "alpha, beta", "rest")] == [4, 5, 12]


def test_own_rules_change_what_they_say_and_leave_the_defaults_of_the_kinds():
    rules = [{"match": "re:conv3.weight", "lr_mult": 2}, {"match": "re:^head", "weight_decay": 0.2}]
    options = {"type": "BinaryAdam", "lr": 1.0, "weight_decay": 0.1, "lr_mult": {"latent": 0.5, "norm": 3}}
    (optimizer,) = build_optimizers(Net(), {**options, "rules": rules})
    groups = by_group(optimizer)
    found = {name: (group["lr"], group["weight_decay"], group["clip"]) for name, group in groups.items()}
    assert found == {
        "re:conv3.weight": (2.0, 0.0, 1.0),
        "re:^head (norm)": (3.0, 0.2, None), "re:^head (float)": (1.0, 0.2, None),
        "latent": (0.5, 0.0, 1.0), **dict.fromkeys(("alpha", "beta", "scale", "threshold"), (1.0, 0.0, None)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "Adamm"}, "bam optimizers"),
        ({}, "bam optimizers"),
        ({"type": "SGD", "lr": 0.1, "betas": [0.9, 0.99]}, "SGD says.*betas.*momentum"),
        ({"type": "Adam", "rules": [{"match": "re:body"}]}, "claims no parameter"),
        ({"type": "Adam", "rules": [{"match": "latent"}, {"match": "re:conv3"}]}, "claimed by the rules"),
        ({"type": "Adam", "rules": [{"lr_mult": 2}]}, "needs `match`"),
        ({"type": "Adam", "rules": [{"match": "latents"}]}, "latent, alpha"),
        ({"type": "Adam", "rules": [{"match": "re:("}]}, "regular expression"),
        ({"type": "Adam", "rules": [{"match": "latent", "momentun": 1}]}, "momentun"),
        ({"type": "Adam", "lr_mult": {"latents": 1}}, "latents"),
        ({"type": "BinaryAdam", "rules": [{"match": "latent"}, {"match": "re:conv3"}]}, "claimed by the rules"),
        ({"type": "BinaryAdam", "rules": [{"match": "re:body"}]}, "claims no parameter"),
        ({"type": "Adam", "others": {"type": "SGD"}}, "belongs to Bop"),
        ({"type": "Bop"}, "block.conv3.*BAMWeight"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(OptimizerError, match=message):
        build_optimizers(Net(), options)


def test_factors_on_the_rate_that_claim_nothing_are_refused():
    with pytest.raises(OptimizerError, match=r"lr_mult.beta claims no parameter.*latent"):
        build_optimizers(SignNet(), {"type": "BinaryAdam", "lr_mult": {"latent": 0.5, "beta": 2}})


def test_resumed_optimizer_has_moments_and_rates_of_the_state_and_settings_of_the_options(caplog):
    def make(**options):
        torch.manual_seed(3)
        return build_optimizers(Net(), {"type": "BinaryAdam", "lr": 0.01, **options})[0]

    first = make(weight_decay=0.1)
    for group in first.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    first.step()
    first.param_groups[0]["lr"] = 0.007
    saved = first.state_dict()
    second = make(weight_decay=0.2, latent_clip=0.5, betas=[0.5, 0.9])
    resume_optimizer(second, saved)
    groups = by_group(second)
    assert groups["latent"]["lr"] == 0.007 and groups["latent"]["clip"] == 0.5
    assert groups["float"]["weight_decay"] == 0.2 and groups["float"]["betas"] == (0.5, 0.9)
    assert "weight_decay was 0.1 in the training state and is 0.2 now" in caplog.text
    moments = [second.state[parameter]["exp_avg"] for group in second.param_groups for parameter in group["params"]]
    assert len(moments) == sum(len(group["params"]) for group in saved["param_groups"])
    assert all(bool((each != 0).all()) for each in moments)
    resume_optimizer(make(), saved, "AdamW")
    with pytest.raises(OptimizerError, match="the training state is of SGD"):
        resume_optimizer(second, saved, "SGD")
    before = second.state_dict()
    others = make(rules=[{"match": "re:head"}]).state_dict()
    for wrong in (others, torch.optim.SGD(Net().parameters(), lr=1.0).state_dict()):
        with pytest.raises(OptimizerError, match="start anew"):
            resume_optimizer(second, wrong)
    assert str(second.state_dict()) == str(before)


def test_assign_refuses_unclaimed_parameters():
    with pytest.raises(OptimizerError, match="no parameter rule claims 'b'"):
        assign({"a": "float", "b": "float"}, [Rule("a", lambda name, kind: name == "a")])


def test_fixed_parameters_are_left_out():
    net = Net()
    net.head.weight.requires_grad_(False)
    (optimizer,) = build_optimizers(net, {"type": "Adam"})
    assert all(parameter is not net.head.weight for parameter in optimizer.param_groups[0]["params"])


def test_numbers_that_yaml_reads_as_text_are_taken_as_numbers():
    (optimizer,) = build_optimizers(Net(), {"type": "Adam", "lr": "2e-4"})
    assert optimizer.param_groups[0]["lr"] == 2e-4


def test_binary_adam_is_adamw_with_clipping():
    ours, theirs = (nn.Parameter(torch.tensor([0.9, -0.2, -0.95])) for _ in range(2))
    optimizer = BinaryAdam([ours], lr=0.2, weight_decay=0.1, clip=1.0)
    reference = torch.optim.AdamW([theirs], lr=0.2, weight_decay=0.1)
    for gradient in ([-1.0, 2.0, 3.0], [-2.0, -1.0, 0.5]):
        ours.grad = theirs.grad = torch.tensor(gradient)
        optimizer.step()
        reference.step()
        with torch.no_grad():
            theirs.clamp_(-1, 1)
        assert torch.equal(ours, theirs)
    assert ours.abs().max() == 1.0


def test_bop_flips_by_its_rule():
    weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.7, -0.4]))
    optimizer = Bop([weight], lr=0.5, threshold=0.6)
    assert weight.tolist() == [1.0, -1.0, 1.0, -1.0]
    weight.grad = torch.tensor([2.0, 2.0, 1.0, -2.0])
    optimizer.step()  # means 1, 1, 0.5, -1: only the first and the last exceed 0.6 and agree with their weight
    assert weight.tolist() == [-1.0, -1.0, 1.0, 1.0]
    weight.grad = torch.tensor([2.0, 0.0, 1.0, -2.0])
    optimizer.step()  # means 1.5, 0.5, 0.75, -1.5
    assert weight.tolist() == [-1.0, -1.0, -1.0, 1.0]


@pytest.mark.parametrize("bias_correction", [True, False])
def test_bop_2nd_order_flips_by_its_rule(bias_correction):
    gamma, sigma, threshold, eps = 0.3, 0.2, 0.7, 1e-10
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(64, generator=generator)
    weight = nn.Parameter(start.clone())
    optimizer = Bop2ndOrder(
        [weight], lr=gamma, sigma=sigma, threshold=threshold, eps=eps, bias_correction=bias_correction
    )
    signs, mean, square, flips = start.sign().double(), torch.zeros(64).double(), torch.zeros(64).double(), 0
    for step in range(1, 6):
        gradient = torch.randn(64, generator=generator)
        weight.grad = gradient
        optimizer.step()
        mean = (1 - gamma) * mean + gamma * gradient.double()
        square = (1 - sigma) * square + sigma * gradient.double() ** 2
        m, v = mean, square
        if bias_correction:
            m, v = mean / (1 - (1 - gamma) ** step), square / (1 - (1 - sigma) ** step)
        pull = m / (v.sqrt() + eps)
        flip = (pull.abs() > threshold) & (pull.sign() == signs)
        signs = torch.where(flip, -signs, signs)
        flips += int(flip.sum())
        assert torch.equal(weight.double(), signs)
    assert 20 < flips < 300


def test_bop_takes_the_latents_and_leaves_the_rest_to_others():
    net = SignNet()
    others = {"type": "BinaryAdam", "lr": 0.01}
    bop, adam = build_optimizers(net, {"type": "Bop", "lr": 1e-3, "threshold": 1e-6, "others": others})
    assert isinstance(bop, Bop) and isinstance(adam, BinaryAdam)
    assert [id(p) for p in bop.param_groups[0]["params"]] == [id(net.conv.weight)]
    rest = {id(p) for group in adam.param_groups for p in group["params"]}
    assert rest == {id(p) for p in net.parameters()} - {id(net.conv.weight)}
    assert set(net.conv.weight.detach().unique().tolist()) == {-1.0, 1.0}
    with pytest.raises(OptimizerError, match=r"others.*missing"):
        build_optimizers(net, {"type": "Bop"})
    with pytest.raises(OptimizerError, match="no BinaryConv2d"):
        build_optimizers(nn.Conv2d(1, 1, 1), {"type": "Bop"})


@pytest.mark.parametrize(
    ("binarizer", "options", "expected"),
    [("bnn", {}, False), ("bam", {}, True), ("bam", {"alpha": "learned", "group_index": 1}, True), ("xnor", {}, True)],
)
def test_magnitude_is_needed_where_the_binary_weight_follows_it(binarizer, options, expected):
    conv = BinaryConv2d(in_channels=3, out_channels=2, weight_binarizer=binarizer, weight_options=options)
    before = conv.weight.detach().clone()
    assert depends_on_magnitude(conv) is expected
    assert torch.equal(conv.weight, before)
