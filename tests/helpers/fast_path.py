"""One training step of a module, by the fast path or without it, and results compared."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bam_plugin.nn.fast import fused

WIDTH = 12


def trained_once(module: nn.Module, x: Tensor, fast: bool, autocast: bool = False, call=None) -> dict[str, Tensor]:
    """Output, gradients and buffers of a copy of `module` after one forward and backward pass."""
    module = copy.deepcopy(module).train()
    x = x.detach().clone().requires_grad_(x.requires_grad)
    with fused.switched(fast), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = (call or nn.Module.__call__)(module, x)
    with fused.switched(fast):  # checkpoints run the forward pass again
        (out * torch.linspace(-1, 1.5, out.numel(), dtype=out.dtype).sin().view(out.shape)).sum().backward()
    results = {"output": out.detach(), **{f"buffer {name}": value for name, value in module.named_buffers()}}
    leaves = {"x": x, **dict(module.named_parameters())}
    return results | {f"grad {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], rtol: float) -> None:
    """Equal but for `rtol` times the greatest magnitude of each tensor."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        scale = float(value.abs().max())
        torch.testing.assert_close(second[name], value, rtol=0, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}")


def example(memory_format, dtype=torch.float64, channels=WIDTH, size=(3, 7, 6)) -> Tensor:
    count, height, width = size
    x = torch.randn(count, channels, height, width, dtype=dtype) * 2 + 0.3
    return x.contiguous(memory_format=memory_format).requires_grad_()


def shaken(module: nn.Module, memory_format=torch.contiguous_format, dtype=torch.float64) -> nn.Module:
    """`module` with every parameter away from its start: negative slopes, shifts and factors."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.4 * torch.randn_like(parameter) * (parameter.abs().mean() + 0.5)
    return module.to(dtype).to(memory_format=memory_format)
