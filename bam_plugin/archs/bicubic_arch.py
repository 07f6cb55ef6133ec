"""MATLAB's bicubic upscaling as a network without parameters: `bam test` measures the baseline like any network."""

from __future__ import annotations

import numpy as np
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from bam_plugin.errors import BamError
from bam_plugin.pictures.imresize import bicubic_taps


@ARCH_REGISTRY.register()
class Bicubic(nn.Module):
    """Upscales (N, C, H, W) by `upscale` as MATLAB's imresize(x, upscale, 'bicubic') does, in float64.

    The result has the type of the input and may overshoot its range a little.
    """

    def __init__(self, *, upscale: int = 4) -> None:
        super().__init__()
        if upscale < 1:
            raise BamError(f"Bicubic expects upscale >= 1, found {upscale}.")
        self.upscale = upscale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H * upscale, W * upscale)."""
        rows = self._matrix(x.shape[-2], x.device)
        columns = self._matrix(x.shape[-1], x.device)
        return (rows @ x.double() @ columns.T).to(x.dtype)

    def _matrix(self, length: int, device: torch.device) -> torch.Tensor:
        """The interpolation of one axis as a matrix (length * upscale, length)."""
        weights, indices = bicubic_taps(length, length * self.upscale, float(self.upscale))
        matrix = np.zeros((length * self.upscale, length))
        np.add.at(matrix, (np.arange(len(matrix)), indices), weights)
        return torch.from_numpy(matrix).to(device)
