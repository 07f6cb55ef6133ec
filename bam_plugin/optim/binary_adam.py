"""BinaryAdam: AdamW that keeps latent weights near zero, where their sign can change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from bam_plugin.optim.registry import OPTIMIZER_REGISTRY


@OPTIMIZER_REGISTRY.register()
class BinaryAdam(torch.optim.AdamW):
    """AdamW with weights clipped to [-clip, clip] after each step, in the groups that have a `clip`.

    A latent weight far from zero can hardly change its sign. Clipping keeps it near zero (Courbariaux et al.,
    BinaryConnect, NeurIPS 2015). `build_optimizers` sets `clip` for the group of latent weights and decays float
    weights only: decay pulls latent weights towards zero, where noise flips them, and moves the thresholds of signs.

    Args:
        params, lr, betas, eps, weight_decay: as in torch.optim.AdamW (decoupled weight decay).
        clip: greatest magnitude of a weight, or None for no clipping. Each group can have its own.
        fused: torch's fused kernel (CPU and GPU), or None for torch's choice.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = None,
        fused: bool | None = None,
    ) -> None:
        beta1, beta2 = betas
        super().__init__(params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=fused)
        # AdamW's constructor has no `clip`. It becomes the default of groups that do not set their own.
        self.defaults["clip"] = clip
        for group in self.param_groups:
            group.setdefault("clip", clip)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of AdamW, then the clipping."""
        loss = super().step(closure)
        for group in self.param_groups:
            limit = group["clip"]
            if limit is not None and group["params"]:
                torch._foreach_clamp_max_(group["params"], limit)
                torch._foreach_clamp_min_(group["params"], -limit)
        return loss
