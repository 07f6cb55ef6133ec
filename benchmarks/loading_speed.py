"""Samples per second of PairedPatchDataset against BasicSR's PairedImageDataset, from the same LMDBs.

    python benchmarks/loading_speed.py --root FOLDER_OF_IMAGES [--workers 2] [--seconds 10]

Prepares sub-images (480, step 240, as BasicSR does) in a temporary folder and reads batches of 16 with LR patches of
48x48 at x4 through PyTorch's DataLoader, each dataset in turn, several rounds, and prints the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bam_plugin import data as bam_data
from bam_plugin.data.images import list_images
from bam_plugin.data.prepare import prepare_training_set

BATCH = 16
VARIANTS = {
    "PairedImageDataset (BasicSR), LMDB": {"type": "PairedImageDataset", "io_backend": {"type": "lmdb"}},
    "PairedPatchDataset, LMDB": {"type": "PairedPatchDataset", "cache": "none"},
    "PairedPatchDataset, memory": {"type": "PairedPatchDataset", "cache": "memory"},
}


def make_loader(options: dict[str, Any], workers: int) -> torch.utils.data.DataLoader:
    """A loader as BasicSR's training uses it, over about 100 000 samples."""
    from basicsr.data import build_dataset
    from basicsr.data.data_sampler import EnlargedSampler

    dataset = build_dataset(options)
    sampler = EnlargedSampler(dataset, 1, 0, max(1, 100_000 // len(dataset)))
    return torch.utils.data.DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=workers, drop_last=True)


def samples_per_second(loader: torch.utils.data.DataLoader, seconds: float) -> float:
    """Read batches for `seconds` after the first few, which start the workers and fill the queue."""
    batches = iter(loader)
    for _ in range(2 * max(1, loader.num_workers) + 1):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += BATCH
    return count / (time.perf_counter() - start)


def main() -> None:
    """Prepare, measure in turn, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of HR images")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="per dataset and round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bam_data.register()
    with tempfile.TemporaryDirectory() as folder:
        pairs = prepare_training_set(list_images(args.root), folder, scales=(4,), min_size=192)
        common = {
            "name": "speed",
            "phase": "train",
            "scale": 4,
            "gt_size": 192,
            "use_hflip": True,
            "use_rot": True,
            "dataroot_gt": str(pairs.hr),
            "dataroot_lq": str(pairs.lr[4]),
        }
        loaders = {name: make_loader({**common, **options}, args.workers) for name, options in VARIANTS.items()}
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(args.rounds):
            for name, loader in loaders.items():
                rates[name].append(samples_per_second(loader, args.seconds))
    base = statistics.median(next(iter(rates.values())))
    print(f"{pairs.pairs} sub-images, {args.workers} workers, batch {BATCH}, LR patch 48x48, x4")
    print(f"| dataset | samples/s (median of {args.rounds}, least to most) | ratio |")
    print("|---|---:|---:|")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.0f} ({min(values):.0f} to {max(values):.0f}) | {middle / base:.1f} |")


if __name__ == "__main__":
    main()
