"""The solver of eq. 6: never worse than its two starts, exact along a coordinate, part of BAMWeight."""

import pytest
import torch

from bam_plugin.nn import BAMWeight
from bam_plugin.nn.alpha import _best_factor, objective, solve_alpha


def group(count, shape=(5, 4, 3, 3)):
    *previous, latent = torch.randn(count, *shape)
    return latent, previous


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_solution_is_no_worse_than_no_accumulation(count, seed):
    """J <= J(0, ..., 0, 1), and J <= J(1, ..., 1)."""
    torch.manual_seed(seed)
    latent, previous = group(count)
    solved = solve_alpha(latent, previous)
    last = torch.zeros(count)
    last[-1] = 1
    cost = objective(latent, previous, solved)
    assert cost <= objective(latent, previous, last)
    assert cost <= objective(latent, previous, torch.ones(count))


def test_an_earlier_filter_that_corrects_a_sign_is_used():
    """BN subtracts the mean 1.5 and turns the sign of the first element of W_2; W_1 turns it back."""
    latent = torch.tensor([1.0, 3.0, 3.0, -1.0]).view(1, 1, 2, 2)
    helper = torch.tensor([1.0, 0.0, 0.0, -1.0]).view(1, 1, 2, 2)
    solved = solve_alpha(latent, [helper])
    ((signs, _),) = BAMWeight(alpha="solved", group_index=1).decompose(latent, [helper])
    assert signs.flatten().tolist() == [1, 1, 1, -1]
    assert objective(latent, [helper], solved) < objective(latent, [helper], torch.tensor([0.0, 1.0]))


def test_one_coordinate_is_searched_exactly():
    """Against a dense scan of the piecewise constant sum."""
    scan = torch.linspace(-60, 60, 20001, dtype=torch.float64)[:, None]
    for seed in range(20):
        torch.manual_seed(seed)
        rest, direction, gain = torch.randn(3, 6, dtype=torch.float64)
        scores = (torch.where(rest + scan * direction >= 0, 1.0, -1.0) * gain).sum(1)
        found = _best_factor(rest, direction, gain, 0.0) or 0.0
        reached = (torch.where(rest + found * direction >= 0, 1.0, -1.0) * gain).sum()
        torch.testing.assert_close(reached, scores.max())


def test_the_middle_of_the_best_interval_is_taken():
    """Breakpoints at 1 and 3; the sum is greatest between them."""
    rest = torch.tensor([-1.0, 3.0], dtype=torch.float64)
    direction = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert _best_factor(rest, direction, torch.ones(2, dtype=torch.float64), 0.0) == 2.0
    assert _best_factor(rest, direction, torch.ones(2, dtype=torch.float64), 1.5) is None


@pytest.mark.parametrize("gradient", ["latent", "accumulated"])
def test_bam_weight_uses_the_solution(gradient):
    latent, previous = group(3)
    solved = solve_alpha(latent, previous)
    binarizer = BAMWeight(alpha="solved", gradient=gradient, group_index=2)
    ((signs, scale),) = binarizer.decompose(latent, previous)
    reached = (latent - signs * scale.view(-1, 1, 1, 1)).double().square().sum()
    torch.testing.assert_close(reached, objective(latent, previous, solved))
    latent.requires_grad_()
    binarizer(latent, previous).sum().backward()
    assert torch.isfinite(latent.grad).all() and latent.grad.abs().sum() > 0


def test_a_group_of_one_needs_no_solution():
    latent, _ = group(1)
    assert solve_alpha(latent, ()).tolist() == [1.0]
