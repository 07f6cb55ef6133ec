from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bam_plugin.optim.errors import OptimizerError
from bam_plugin.optim.resume import resumed_states
from bam_plugin.optim.schedules import (
    check_restart_schedule,
    cooldown,
    cosine,
    halving,
    make_scheduler,
    resolve_epochs,
)


def test_halving_is_the_papers_recipe():
    factors = [halving(iteration, every_iter=200_000) for iteration in (0, 199_999, 200_000, 399_999, 400_000)]
    assert factors == [1, 1, 0.5, 0.5, 0.25]


def test_cosine_spans_the_training_after_the_warm_up():
    values = [cosine(iteration, total_iter=110, warmup_iter=10, end=0.1) for iteration in (0, 10, 35, 60, 110, 500)]
    expected = [1, 1, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 0.55, 0.1, 0.1]
    assert values == pytest.approx(expected)


def test_cooldown_is_constant_and_then_linear():
    values = [cooldown(iteration, total_iter=100, cooldown_iter=20, end=0.2) for iteration in (0, 80, 90, 100, 500)]
    assert values == pytest.approx([1, 1, 0.6, 0.2, 0.2])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    with pytest.raises(OptimizerError, match="cooldown_iter"):
        make_scheduler(optimizer, {"type": "CooldownLR", "cooldown_iter": 9}, total_iter=8, warmup_iter=-1)


@pytest.mark.parametrize("kind", ["same kind", "another kind"])
def test_resumed_schedule_has_the_settings_of_the_option_file(kind, caplog):
    def advance(optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.step()
            scheduler.step()

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [100], gamma=0.5)
    advance(optimizer, scheduler, 4)
    again = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    if kind == "same kind":
        resumed = torch.optim.lr_scheduler.MultiStepLR(again, [6], gamma=0.1)
    else:
        resumed = make_scheduler(again, {"type": "CooldownLR", "cooldown_iter": 5}, total_iter=10, warmup_iter=-1)
    (state,) = resumed_states([resumed], [scheduler.state_dict()])
    assert "takes its settings from the option file" in caplog.text
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(state)
    rates = []
    for _ in range(3):
        advance(again, resumed, 1)
        rates.append(again.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 0.1, 0.1] if kind == "same kind" else [1, 0.8, 0.6])
    with pytest.raises(OptimizerError, match="holds 2 schedules"):
        resumed_states([resumed], [state, state])


def test_scheduler_keeps_the_ratio_of_the_groups_and_resumes():
    def make():
        groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
        optimizer = torch.optim.SGD(groups)
        return optimizer, make_scheduler(optimizer, {"type": "CosineLR", "end": 0.5}, total_iter=8, warmup_iter=-1)

    optimizer, scheduler = make()
    rates = []
    for _ in range(8):
        rates.append([group["lr"] for group in optimizer.param_groups])
        if len(rates) == 4:
            states = optimizer.state_dict(), scheduler.state_dict()
        optimizer.step()
        scheduler.step()
    assert rates[4] == pytest.approx([0.75, 0.075])
    again, resumed = make()
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    again.step()
    resumed.step()
    assert [group["lr"] for group in again.param_groups] == rates[4]


def test_unknown_schedule_options_are_named():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    with pytest.raises(OptimizerError, match="HalvingLR"):
        make_scheduler(optimizer, {"type": "HalvingLR", "every": 3}, total_iter=8, warmup_iter=-1)


def test_epochs_become_iterations():
    train = {"total_epochs": 600, "warmup_epochs": 0.5, "scheduler": {"type": "HalvingLR", "every_epochs": 200}}
    assert resolve_epochs(train)[0] == "total_epochs 600 = total_iter 600000 (1000 iterations per epoch)."
    assert train == {
        "total_iter": 600_000, "warmup_iter": 500, "scheduler": {"type": "HalvingLR", "every_iter": 200_000},
    }  # fmt: skip
    train = {"iters_per_epoch": 40, "total_iter": 7, "scheduler": {"milestone_epochs": [1, 2.5]}}
    resolve_epochs(train)
    assert train == {"iters_per_epoch": 40, "total_iter": 7, "scheduler": {"milestones": [40, 100]}}


def test_epochs_and_iterations_together_are_refused():
    train = {"total_epochs": 1, "total_iter": None, "warmup_epochs": 2, "warmup_iter": -1}
    resolve_epochs(train)
    assert train == {"total_iter": 1000, "warmup_iter": 2000}
    with pytest.raises(OptimizerError, match="total_epochs and total_iter"):
        resolve_epochs({"total_epochs": 1, "total_iter": 1000})


def test_periods_shorter_than_the_training_are_refused_before_it_starts():
    options = {"type": "CosineAnnealingRestartLR", "periods": [10, 10]}
    check_restart_schedule(options, 20)
    with pytest.raises(OptimizerError, match="CosineLR"):
        check_restart_schedule(options, 21)
