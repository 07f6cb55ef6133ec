"""PackedNetwork: a packed file as a network, so that `bam test` measures it like any other.

network_g:
  type: PackedNetwork
  file: NAME_x4.bam.safetensors
"""

from __future__ import annotations

import numpy as np
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from bam_plugin.engine.opening import open_engine
from bam_plugin.errors import BamError
from bam_plugin.mixed.mixed_engine import MixedEngine
from bam_plugin.mixed.reach import run_fitted
from bam_plugin.packed.format import read_model
from bam_plugin.packed.precision import FLOAT
from bam_plugin.packed.zoo import find_model


class PackedTrainingError(BamError):
    """A packed file cannot be trained."""


@ARCH_REGISTRY.register()
class PackedNetwork(nn.Module):
    """The network of a packed file, (N, C, H, W) in [0, 1] -> (N, C, H * scale, W * scale); it cannot be trained.

    A graph runs in its own engine, on the CPU. A mixed network runs in torch, on the device of this module.

    Args:
        file: the packed file, or a network of the zoo.
        isa, threads, precision: as in `bam_plugin.engine.Engine`; threads None is torch's number.
    """

    def __init__(
        self, *, file: str, isa: str | None = None, threads: int | None = None, precision: str = FLOAT
    ) -> None:
        super().__init__()
        threads = threads or torch.get_num_threads()
        engine = open_engine(read_model(find_model(file)), isa=isa, threads=threads, precision=precision)
        self.engine = engine
        # It is a part of this module, so that it moves to a device with it.
        self.network = engine.network if isinstance(engine, MixedEngine) else None

    def forward(self, x: Tensor) -> Tensor:
        """See the class; without gradient."""
        if self.training:
            raise PackedTrainingError("a packed network only evaluates; train the network that it was made from")
        if not isinstance(self.engine, MixedEngine):
            images = x.detach().permute(0, 2, 3, 1).float().cpu().numpy()
            results = np.stack([self.engine.run(np.ascontiguousarray(image)) for image in images])
            return torch.from_numpy(results).permute(0, 3, 1, 2).to(x)
        with self.engine.settings():
            return run_fitted(self.engine.network, x, self.engine.sizes)
