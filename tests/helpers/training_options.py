"""A complete option file for tests: a tiny network on the tiny pairs, seconds of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def tiny_options(pairs: Any, **train: Any) -> dict[str, Any]:
    """Options of a training of 20 iterations; keywords replace or add options under `train`."""
    lmdbs = {"dataroot_gt": str(pairs.gt_lmdb), "dataroot_lq": str(pairs.lq_lmdb), "io_backend": {"type": "lmdb"}}
    # Folders, since a process may open an LMDB only once.
    folders = {"dataroot_gt": str(pairs.gt_folder), "dataroot_lq": str(pairs.lq_folder), "io_backend": {"type": "disk"}}
    return {
        "name": "tiny",
        "model_type": "BinarySRModel",
        "scale": pairs.scale,
        "num_gpu": 0,
        "manual_seed": 3,
        "datasets": {
            "train": {
                "name": "tiny",
                "type": "PairedPatchDataset",
                **lmdbs,
                "gt_size": 32,
                "use_hflip": True,
                "use_rot": True,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 2,
                "dataset_enlarge_ratio": 3,
            },
            "val": {"name": "tiny_val", "type": "PairedImageDataset", **folders},
        },
        "network_g": {"type": "BSRN", "num_feat": 8, "num_hpb": 1, "upscale": 4, "upsampler": "pixelshuffledirect"},
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 0.001, "betas": [0.9, 0.99]},
            "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [40], "restart_weights": [1]},
            "total_iter": 20,
            "warmup_iter": -1,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
            **train,
        },
        "val": {
            "val_freq": 15,
            "save_img": False,
            "metrics": {
                "psnr": {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": True},
                "ssim": {"type": "calculate_ssim", "crop_border": 4, "test_y_channel": True},
            },
        },
        "logger": {"print_freq": 5, "save_checkpoint_freq": 10, "use_tb_logger": True, "pbar": False},
        "dist_params": {"backend": "gloo", "port": 29500},
    }


def changed(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`options` with dotted keys set, or removed where the value is None."""
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        section = options
        for name in parents:
            section = section.setdefault(name, {})
        if value is None:
            section.pop(last)
        else:
            section[last] = value
    return options


def write_options(options: dict[str, Any], path: Path) -> str:
    """Write `options` as YAML and return the path as the command line takes it."""
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return str(path)
