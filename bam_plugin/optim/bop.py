"""Optimizers that flip binary weights directly and keep no latent magnitude."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bam_plugin.nn import sign
from bam_plugin.optim.registry import OPTIMIZER_REGISTRY


class _FlippingOptimizer(torch.optim.Optimizer, abc.ABC):
    """Weights are -1 or +1 from the first step on. A step flips the weights whose `_pull` exceeds the threshold."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.copy_(sign(parameter))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Flip each weight whose pull exceeds the threshold and has the sign of the weight."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                pull = self._pull(parameter.grad, self.state[parameter], group)
                # A weight descends against its gradient, so it flips when both have the same sign.
                flip = (pull.abs() > group["threshold"]) & (sign(pull) == parameter)
                parameter.copy_(torch.where(flip, -parameter, parameter))
        return loss

    @abc.abstractmethod
    def _pull(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The evidence of each weight's gradient, which `step` compares with `threshold`."""


@OPTIMIZER_REGISTRY.register()
class Bop(_FlippingOptimizer):
    """Binary optimizer: flips a weight when the running mean of its gradient is consistent and large.

    m <- (1 - lr) m + lr g;  w <- -w if |m| > threshold and sign(m) = w   (Helwegen et al., NeurIPS 2019, alg. 1, where
    lr is the adaptivity rate gamma). It has the name `lr` so that schedules act on it.

    It works for latent weights whose magnitude nothing uses. `build_optimizers` refuses others.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-4, threshold: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "threshold": threshold})

    def _pull(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if "mean" not in state:
            state["mean"] = torch.zeros_like(gradient)
        return state["mean"].lerp_(gradient, group["lr"])


@OPTIMIZER_REGISTRY.register()
class Bop2ndOrder(_FlippingOptimizer):
    """Bop with the mean gradient measured in units of its spread, so that the threshold has no scale.

    m <- (1 - lr) m + lr g;  v <- (1 - sigma) v + sigma g^2;  w <- -w if |m / (sqrt(v) + eps)| > threshold and
    sign(m) = w   (Suarez-Ramirez et al., CVPR workshops 2021). `bias_correction` divides m and v by 1 - (1 - rate)^t.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-7,
        sigma: float = 1e-3,
        threshold: float = 1e-6,
        eps: float = 1e-10,
        bias_correction: bool = True,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "sigma": sigma, "threshold": threshold, "eps": eps, "bias_correction": bias_correction},
        )

    def _pull(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if "mean" not in state:
            state.update(mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient), missing=[1.0, 1.0])
        mean = state["mean"].lerp_(gradient, group["lr"])
        square = state["square"].lerp_(gradient * gradient, group["sigma"])
        if group["bias_correction"]:
            # Products instead of powers stay right when a schedule changes lr.
            state["missing"] = [
                left * (1 - rate) for left, rate in zip(state["missing"], (group["lr"], group["sigma"]), strict=True)
            ]
            mean, square = mean / (1 - state["missing"][0]), square / (1 - state["missing"][1])
        return mean / (square.sqrt() + group["eps"])
