"""Batch normalization over the batches of all processes, on any backend (nn.SyncBatchNorm refuses CPU tensors).

Mean and variance are sums over processes, reduced by an operation whose gradient is the same reduction. So a training
with n processes is, to rounding, the training of one process with the joined batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """y = sum of x over the processes. Each y depends on each x, so the gradient is the sum of all dL/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d that normalizes in training over the batches of all processes together.

    Every process must call it the same number of times; batches may differ in size. In evaluation, and without a
    process group, it is nn.BatchNorm2d. Its state dict is that of nn.BatchNorm2d.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), normalized."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        self._check_input_dim(x)
        dtype = x.dtype
        if dtype in (torch.bfloat16, torch.float16):
            # As in torch, statistics of 16-bit data are float32.
            x = x.float()
        axes = (0, 2, 3)
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = _SumOverProcesses.apply(torch.cat([x.sum(axes), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        # A second reduction, because E[x^2] - mean^2 would cancel digits.
        centred = x - mean.view(1, -1, 1, 1)
        variance = _SumOverProcesses.apply((centred * centred).sum(axes)) / total
        self._update_running_statistics(mean.detach(), variance.detach() * total / (total - 1))
        result = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        if self.affine:
            result = result * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return result.to(dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronize_batch_norms(net: nn.Module) -> nn.Module:
    """Replace every nn.BatchNorm2d inside `net` by a SyncedBatchNorm2d with the same parameters and buffers."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _synced(child))
    return net


def _synced(norm: nn.BatchNorm2d) -> SyncedBatchNorm2d:
    result = SyncedBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    result.train(norm.training)
    # It keeps the parameters themselves, because an optimizer may hold them already.
    result._parameters = norm._parameters
    result._buffers = norm._buffers
    return result
