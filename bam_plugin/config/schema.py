"""The sections of an option file and their typed keys, as BasicSR 1.4.2 and this package read them.

A field without a default must be in the file. Sections whose keys depend on a chosen type (networks, losses,
optimizers, schedulers, metrics) are checked against the signature of that type instead (`signatures.py`). Further keys
that a registered model or dataset reads are found in its source (`sources.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Typed = dict[str, Any]
"""A mapping with a `type` that names something registered; the other keys are its arguments."""


class Backend(msgspec.Struct):
    """datasets.*.io_backend."""

    type: Literal["disk", "lmdb", "memcached"]
    server_list_cfg: str | None = None
    client_cfg: str | None = None
    sys_path: str | None = None


class Dataset(msgspec.Struct):
    """One entry of datasets, as the loaders and the paired datasets read it. Sizes are in HR pixels."""

    name: str
    type: str
    dataroot_gt: str | None = None
    dataroot_lq: str | None = None
    meta_info_file: str | None = None
    io_backend: Backend | None = None
    filename_tmpl: str = "{}"
    gt_size: Positive | None = None
    use_hflip: bool = False
    use_rot: bool = False
    color: Literal["y"] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    num_worker_per_gpu: NotNegative | None = None
    batch_size_per_gpu: Positive | None = None
    dataset_enlarge_ratio: Annotated[float, Meta(gt=0)] = 1
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    num_prefetch_queue: Positive = 1
    pin_memory: bool = False
    persistent_workers: bool = False
    manual_seed: int | None = None
    use_shuffle: bool = True
    """Nothing reads this key, but the files that come with BasicSR have it."""


class Train(msgspec.Struct):
    """train: iterations, optimizer, scheduler and losses, after epochs are turned into iterations."""

    total_iter: Positive
    optim_g: Typed
    scheduler: Typed
    warmup_iter: int = -1
    iters_per_epoch: Positive = 1000
    ema_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    pixel_opt: Typed | None = None
    perceptual_opt: Typed | None = None


class Watch(msgspec.Struct):
    """train.watch of BinarySRModel."""

    nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: NotNegative = 10
    plateau: Literal["warn", "stop"] | None = None
    plateau_window: Positive = 1000
    plateau_patience: Positive = 10
    plateau_gain: Annotated[float, Meta(ge=0)] = 0.001


class Distillation(msgspec.Struct):
    """train.distill of BinarySRModel: the teacher and the weights of its losses."""

    network: Typed
    path: str
    param_key: str = "params"
    full_precision: bool = False
    output_weight: Annotated[float, Meta(ge=0)] = 1.0
    feature_weight: Annotated[float, Meta(ge=0)] = 0.0
    features: list[Any] = []


class Stages(msgspec.Struct):
    """train.stages of BinarySRModel, in iterations."""

    float: NotNegative = 0
    binary_activations: NotNegative = 0


class BinaryTrain(Train):
    """train of BinarySRModel."""

    precision: Literal["float32", "bf16", "bf16_all"] = "float32"
    channels_last: bool = False
    accumulate: Positive = 1
    grad_clip: Annotated[float, Meta(gt=0)] | None = None
    sync_bn: bool = False
    health_freq: NotNegative = 0
    watch: Watch | None = None
    distill: Distillation | None = None
    stages: Stages | None = None
    ema_bn: Literal["copy", "reestimate"] = "copy"
    ema_bn_freq: Positive = 10


class ValidationInTraining(msgspec.Struct):
    """val of a training."""

    val_freq: Positive
    save_img: bool
    suffix: str | None = None
    pbar: bool = False
    metrics: dict[str, Typed] | None = None


class ValidationInTest(msgspec.Struct):
    """val of a test."""

    save_img: bool
    suffix: str | None = None
    pbar: bool = False
    metrics: dict[str, Typed] | None = None
    val_freq: Positive | None = None


class Wandb(msgspec.Struct):
    """logger.wandb."""

    project: str | None = None
    resume_id: str | None = None


class Logger(msgspec.Struct):
    """logger: frequencies in iterations."""

    print_freq: Positive
    save_checkpoint_freq: Positive
    use_tb_logger: bool
    wandb: Wandb | None = None
    pbar: bool = True


class Distributed(msgspec.Struct):
    """dist_params."""

    backend: Literal["nccl", "gloo", "mpi"] | None = None
    port: int | None = None


class Options(msgspec.Struct):
    """The top of the file. Its sections are checked one by one."""

    name: str
    model_type: str
    num_gpu: NotNegative | Literal["auto"]
    datasets: dict[str, Any]
    network_g: Typed
    path: dict[str, Any]
    scale: Positive | None = None
    manual_seed: int | None = None
    train: dict[str, Any] | None = None
    val: dict[str, Any] | None = None
    logger: dict[str, Any] | None = None
    dist_params: dict[str, Any] | None = None
    find_unused_parameters: bool = False


OPTIMIZER_KEYS = ("lr_mult", "latent_clip", "rules", "others")
"""Keys of train.optim_g that the optimizers of this package take beside the arguments of the class."""

PATH_KEYS = ("pretrain_network_g", "strict_load_g", "param_key_g", "resume_state", "ignore_resume_networks")
"""Keys of path that every model reads; BasicSR makes a folder of any other key. Further networks have the same with
their own letter."""

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "": Options,
    "datasets.train": Dataset,
    "train": BinaryTrain,
    "val": ValidationInTraining,
    "logger": Logger,
    "dist_params": Distributed,
}
"""Section -> its keys. It says where a misplaced key belongs."""
