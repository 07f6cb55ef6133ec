"""Refuse combinations of devices and training options that cannot work, before the training starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bam_plugin.errors import BamError


def check_devices(opt: Mapping[str, Any]) -> None:
    """Refuse options that need a missing GPU, or that torch's DataParallel cannot serve."""
    if opt["num_gpu"] != 0 and not torch.cuda.is_available():
        raise BamError(f"num_gpu is {opt['num_gpu']}, but torch sees no GPU; set num_gpu to 0 or auto")
    train_opt = opt.get("train") or {}
    if opt["is_train"] and not opt["dist"] and opt["num_gpu"] > 1:
        for key, bad in (
            ("precision", train_opt.get("precision") == "bf16"),
            ("stages", bool(train_opt.get("stages"))),
        ):
            # Both change the forward of convolutions, which DataParallel's copies would share.
            if bad:
                raise BamError(
                    f"train.{key} does not work with num_gpu: {opt['num_gpu']} in one process; start torchrun "
                    f"--nproc_per_node={opt['num_gpu']} -m bam_plugin.train -opt FILE --launcher pytorch, or set "
                    "num_gpu to 1"
                )
