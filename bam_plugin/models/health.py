"""The health of the binary layers, as scalars that a loss curve does not show.

Each binary convolution has

- `flips`: the share of weight signs that changed since the last measurement.
- `saturated`: the share of normalized activations beyond [-1, 1], where the clipped estimator passes no gradient. It is
  there only if a normalization precedes the sign.
- `dead`: the share of input channels whose binary activation in evaluation is the same at every position of the batch.
  They carry no information.

Each accumulation has `alpha` and `beta`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_plugin.nn import ActivationScale, BinaryConv2d
from bam_plugin.nn.activations import ActivationBinarizer
from bam_plugin.nn.binary_conv import binary_convs


class HealthMonitor:
    """Measures the binary convolutions of `net` during one of its forward passes.

    `freq` is the number of iterations between measurements. Between them nothing is computed and no hook is installed.
    """

    def __init__(self, *, net: nn.Module, freq: int) -> None:
        self.freq = freq
        self._convs = binary_convs(net)
        self._betas = {name: module for name, module in net.named_modules() if isinstance(module, ActivationScale)}
        self._signs: dict[str, Tensor] = {}
        self._clock: tuple[int, float] | None = None

    def due(self, iteration: int) -> bool:
        """Whether to measure in `iteration`."""
        return self.freq > 0 and iteration % self.freq == 0

    @contextlib.contextmanager
    def measuring(self, scalars: dict[str, float]) -> Iterator[None]:
        """Measure the forward passes inside the block and enter the results in `scalars` ("flips/LAYER": 0.01, ...)."""
        handles: list[Any] = []
        seen: set[str] = set()
        for name, conv in self._convs.items():
            # Hooks on the parts of a convolution switch off its fast path.
            handles.append(conv.register_forward_hook(self._conv_hook(name, scalars, seen)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for name, conv in self._convs.items():
            alpha = getattr(conv.binarize_weight, "alpha", None)
            if alpha is not None:
                scalars.update({f"alpha/{name}/{index}": value for index, value in enumerate(alpha.tolist())})
        for name, beta in self._betas.items():
            if beta.scale is not None:
                scalars[f"beta/{name}"] = float(beta.scale.detach())

    def throughput(self, iteration: int, images_per_iteration: int) -> dict[str, float]:
        """Iterations and images per second since the last call; empty at the first call."""
        now = time.perf_counter()
        before, self._clock = self._clock, (iteration, now)
        if before is None or iteration <= before[0]:
            return {}
        rate = (iteration - before[0]) / (now - before[1])
        return {"throughput/iterations_per_s": rate, "throughput/images_per_s": rate * images_per_iteration}

    def _conv_hook(self, name: str, scalars: dict[str, float], seen: set[str]) -> Any:
        def hook(module: BinaryConv2d, inputs: tuple[Any, ...], output: Tensor) -> None:
            if name in seen:
                # The first micro-batch is enough. A second look would find no flips.
                return
            seen.add(name)
            x, *rest = inputs
            previous = rest[0] if rest else ()
            # Several bases (ABC-Net) count as one set of signs.
            signs = torch.cat([signs.flatten() >= 0 for signs, _ in module.decompose(previous)])
            if name in self._signs:
                scalars[f"flips/{name}"] = float((signs != self._signs[name]).float().mean())
            self._signs[name] = signs
            binarizer = module.binarize_activation
            if binarizer.alphabet is not None:
                scalars[f"dead/{name}"] = _dead_share(binarizer, x)
            if binarizer.norm is not None and binarizer.low < 0:
                scalars[f"saturated/{name}"] = _saturated_share(binarizer.norm, x)

        return hook


def worst_layers(scalars: dict[str, float], count: int = 3) -> str:
    """A sentence that names the layers with the most dead channels and the most saturated activations."""
    parts = []
    for kind, text in (("dead/", "dead channels"), ("saturated/", "saturated activations")):
        layers = sorted(((value, name) for name, value in scalars.items() if name.startswith(kind)), reverse=True)
        listed = ", ".join(f"{name.removeprefix(kind)} {value:.0%}" for value, name in layers[:count])
        if listed:
            parts.append(f"Most {text}: {listed}.")
    return " ".join(parts) or "The network has no binary convolutions."


def means(scalars: dict[str, float]) -> dict[str, float]:
    """The mean over the layers of each share, for the log line: {"flips": ..., "saturated": ..., "dead": ...}."""
    result = {}
    for kind in ("flips", "saturated", "dead"):
        values = [value for name, value in scalars.items() if name.startswith(f"{kind}/")]
        if values:
            result[kind] = sum(values) / len(values)
    return result


@torch.no_grad()
def _dead_share(binarizer: ActivationBinarizer, x: Tensor) -> float:
    """Share of the channels of x (N, C, H, W) whose binary activation is constant.

    Running statistics stay as they are.
    """
    training = binarizer.training
    binarizer.eval()
    activation = binarizer(x)
    binarizer.train(training)
    return float((activation.amin(dim=(0, 2, 3)) == activation.amax(dim=(0, 2, 3))).float().mean())


@torch.no_grad()
def _saturated_share(norm: nn.BatchNorm2d, x: Tensor) -> float:
    """Share of the elements of x (N, C, H, W), normalized by their own statistics, that lie beyond [-1, 1]."""
    normalized = F.batch_norm(x.float(), None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    return float((normalized.abs() > 1).float().mean())
