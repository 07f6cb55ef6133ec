"""The data of a training: loaders with an order that can be resumed, and the place in it where a training goes on."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from bam_plugin.data.sampler import ResumableSampler
from bam_plugin.errors import BamError


class TrainingDataError(BamError):
    """The datasets of the option file do not suffice for a training."""


@dataclass(kw_only=True)
class TrainingData:
    """The loaders of a training. A pass is `sampler.batches` iterations; BasicSR calls it an epoch."""

    train: Any
    sampler: ResumableSampler
    total_iter: int
    validation: list[Any] = field(default_factory=list)

    @property
    def passes(self) -> int:
        """The number of passes over the training images in `total_iter` iterations. The last one may be cut."""
        return math.ceil(self.total_iter / self.sampler.batches)

    def pass_of(self, iteration: int) -> int:
        """The pass, from 0, to which `iteration` (from 1) belongs."""
        return (iteration - 1) // self.sampler.batches


def make_loaders(opt: dict[str, Any], logger: logging.Logger) -> TrainingData:
    """The loaders of BasicSR's `create_train_val_dataloader`, with a resumable order and generators of their own."""
    from basicsr.data import build_dataloader, build_dataset

    train_loader, sampler, val_loaders = None, None, []
    for phase, dataset_opt in opt["datasets"].items():
        dataset_opt.setdefault("manual_seed", opt["manual_seed"])
        dataset = build_dataset(dataset_opt)
        if phase == "train":
            sampler = make_sampler(opt, dataset_opt, dataset)
        elif not phase.startswith("val"):
            raise TrainingDataError(f"datasets.{phase}: expected `train`, `val` or `val_N`")
        loader = build_dataloader(
            dataset,
            dataset_opt,
            num_gpu=opt["num_gpu"],
            dist=opt["dist"],
            sampler=sampler if phase == "train" else None,
            seed=opt["manual_seed"],
        )
        # The start of an iterator draws a number. From the global generator, it would make an exact resume impossible.
        loader.generator = torch.Generator().manual_seed(opt["manual_seed"])
        if phase == "train":
            train_loader = loader
        else:
            logger.info(f"Number of val images/folders in {dataset_opt['name']}: {len(dataset)}")
            val_loaders.append(loader)
    if train_loader is None or sampler is None:
        raise TrainingDataError("the option file has no datasets.train")
    data = TrainingData(
        train=train_loader, sampler=sampler, total_iter=int(opt["train"]["total_iter"]), validation=val_loaders
    )
    logger.info(
        f"Training: {len(sampler.dataset)} images, {sampler.batches} iterations of {sampler.batch_size} x "
        f"{opt['world_size']} samples per pass over them, {data.total_iter} iterations = {data.passes} passes."
    )
    return data


def make_sampler(opt: dict[str, Any], dataset_opt: dict[str, Any], dataset: Any) -> ResumableSampler:
    """The order of the training samples for this process. Raises TrainingDataError if the dataset fills no batch."""
    # In one process BasicSR gives one loader the batches of all GPUs.
    batch_size = dataset_opt["batch_size_per_gpu"] * (1 if opt["dist"] else max(1, opt["num_gpu"]))
    ratio = dataset_opt.get("dataset_enlarge_ratio", 1)
    sampler = ResumableSampler(
        dataset=dataset,
        batch_size=batch_size,
        num_replicas=opt["world_size"],
        rank=opt["rank"],
        ratio=ratio,
        seed=opt["manual_seed"],
    )
    if sampler.batches == 0:
        raise TrainingDataError(
            f"datasets.train ({dataset_opt['name']}): {len(dataset)} images x dataset_enlarge_ratio {ratio} are "
            f"less than one batch of {batch_size} in each of {opt['world_size']} processes; raise "
            "dataset_enlarge_ratio or lower batch_size_per_gpu"
        )
    return sampler


def go_on_at(data: TrainingData, state: dict[str, Any], logger: logging.Logger) -> None:
    """Let the order go on behind the iteration of the training state `state`, in which `epoch` becomes its pass.

    The pass follows from the iteration and the present length of a pass. The length changes with the batch size,
    dataset_enlarge_ratio and the number of processes. BasicSR would take the old number, and end a training early if
    its passes have grown.
    """
    before, now = state.get("order") or {}, data.sampler.order
    changes = [f"{key} {before.get(key, 'not known')} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changes:
        logger.warning(f"The training goes on with samples in another order than before: {', '.join(changes)}.")
    state["epoch"], done = divmod(state["iter"], data.sampler.batches)
    data.sampler.resume_at(state["epoch"], done)
