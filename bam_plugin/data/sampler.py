"""The order of the training samples as a function of (seed, epoch), so that a training can resume inside an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class ResumableSampler(Sampler[int]):
    """Yields, for one process, a shuffled share of `ratio` copies of the dataset, whole batches only.

    The order depends on (seed, epoch) alone, not on any global random state. `resume_at(epoch, batches)` leaves out
    what an interrupted training consumed of that epoch. A dataset with a method `set_epoch(epoch)` is told the epoch
    and gets sample numbers up to `ratio` times its length (PairedPatchDataset); other datasets get indices of their
    items.

    Args:
        dataset: only its length matters.
        batch_size: samples per batch of this process; an epoch is cut to whole batches, the same number per process.
        num_replicas, rank: the number of processes and the index of this one.
        ratio: how often the dataset occurs in an epoch (`dataset_enlarge_ratio`); fractions are allowed.
        seed: seed of the order.
    """

    def __init__(
        self,
        *,
        dataset: Sized,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        ratio: float = 1,
        seed: int = 0,
    ) -> None:
        self.dataset: Any = dataset
        self.batch_size = batch_size
        self.num_replicas = num_replicas
        self.rank = rank
        self.seed = seed
        self.total = round(len(dataset) * ratio)
        self.batches = self.total // (batch_size * num_replicas)
        self.epoch = 0
        self._resume = (0, 0)

    @property
    def order(self) -> dict[str, Any]:
        """The values that the order depends on. A training that resumes with other values sees other samples."""
        return {
            "generator": "numpy PCG64",
            "seed": self.seed,
            "samples": self.total,
            "batch_size": self.batch_size,
            "processes": self.num_replicas,
        }

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch` (from 0). Call it before each epoch."""
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def resume_at(self, epoch: int, batches: int) -> None:
        """Leave out the first `batches` batches of `epoch`."""
        self._resume = (epoch, batches)

    def __iter__(self) -> Iterator[int]:
        # The seed is a pair of numbers, as in PairedPatchDataset, so that epochs of neighbouring seeds differ.
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.total)
        order = order[: self.batches * self.batch_size * self.num_replicas]
        share = order[self.rank :: self.num_replicas]
        epoch, batches = self._resume
        if epoch == self.epoch:
            share = share[batches * self.batch_size :]
        if not hasattr(self.dataset, "set_epoch"):
            share = share % len(self.dataset)
        return iter(share.tolist())

    def __len__(self) -> int:
        return self.batches * self.batch_size
