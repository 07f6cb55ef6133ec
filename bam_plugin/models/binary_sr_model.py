"""BinarySRModel: BasicSR's SRModel for binary networks, on CPU and GPU."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bam_plugin.errors import BamError
from bam_plugin.models.checkpoint import random_states, restore_random_states, save_atomically
from bam_plugin.models.validation import validate


@MODEL_REGISTRY.register()
class BinarySRModel(SRModel):
    """Trains, validates, saves and resumes a super-resolution network with binary convolutions."""

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["num_gpu"] != 0 and not torch.cuda.is_available():
            raise BamError(f"num_gpu is {opt['num_gpu']}, but torch sees no GPU; set num_gpu to 0 or auto")
        self.image_results: dict[str, list[dict[str, Any]]] = {}
        super().__init__(opt)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As BasicSR's, and DistributedDataParallel on the CPU too."""
        if self.opt["dist"] and self.device.type == "cpu":
            return DistributedDataParallel(net, find_unused_parameters=self.opt.get("find_unused_parameters", False))
        return super().model_to_device(net)

    def model_ema(self, decay: float = 0.999) -> None:
        """Move the averaged network towards the trained one: latents and all other parameters are averaged, buffers
        (the running statistics of the batch normalizations) are copied.
        """
        net, ema = self.get_bare_model(self.net_g), self.net_g_ema
        with torch.no_grad():
            averages, values = list(ema.parameters()), list(net.parameters())
            torch._foreach_lerp_(averages, values, 1 - decay)
            for average, value in zip(ema.buffers(), net.buffers(), strict=True):
                average.copy_(value)

    def nondist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """Measure and, with `save_img`, write every image of `dataloader` (see validate)."""
        validate(self, dataloader, current_iter, tb_logger, save_img)

    @master_only
    def save_network(self, net: Any, net_label: str, current_iter: int, param_key: Any = "params") -> None:
        """BasicSR's file `models/LABEL_ITER.pth`, written atomically."""
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = {
            key: OrderedDict((name, value.cpu()) for name, value in self.get_bare_model(each).state_dict().items())
            for key, each in zip(keys, nets, strict=True)
        }
        name = "latest" if current_iter == -1 else current_iter
        save_atomically(content, Path(self.opt["path"]["models"]) / f"{net_label}_{name}.pth")

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """BasicSR's file `training_states/ITER.state`, with the random states and the best results, atomically."""
        if current_iter == -1:
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "random": random_states(),
            "best_metric_results": getattr(self, "best_metric_results", {}),
        }
        save_atomically(state, Path(self.opt["path"]["training_states"]) / f"{current_iter}.state")

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Take over optimizers, schedulers, random states and best results; accepts BasicSR's own states too."""
        super().resume_training(resume_state)
        if resume_state.get("best_metric_results"):
            self.best_metric_results = resume_state["best_metric_results"]
        if "random" in resume_state:
            restore_random_states(resume_state["random"])
        else:
            get_root_logger().warning("The training state holds no random states: resuming is not exact.")
