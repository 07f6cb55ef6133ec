"""Do the networks learn? A short training of each network with each method, as curves.

    python benchmarks/training_curves.py run --data DIR --out DIR     # one JSON file per run; finished ones are kept
    python benchmarks/training_curves.py plot --out DIR --png docs/lab/training_curves.png

`--data` is a folder with T91 and Set5. Each run: batch 4, LR patch 24, x4, L1 loss, Adam, 200 iterations,
the same patches for every method. A run records the loss of each iteration and the Set5 PSNR (Y channel, 8 bit, cropped
by 4) at its end. Two hundred iterations show that gradients arrive, not which method wins.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from small_training import SCALE, measure, read_pairs, sample, training_step

from bam_plugin.archs.bsrn_arch import ARCH_REGISTRY
from bam_plugin.data.image_sets import find_image_sets

BATCH = 4
NETWORKS = ("VDSR", "SRResNet", "BSRN")
METHODS = ("bam", "bnn", "dorefa", "abc", "none")


def train(name: str, method: str, data: Path, iterations: int, lr: float, bf16: bool) -> dict:
    """Train one network and return its record."""
    torch.manual_seed(0)
    pairs, validation = read_pairs(data / "T91"), read_pairs(data / "Set5")
    network = ARCH_REGISTRY.get(name)(upscale=SCALE, binarizer=None if method == "none" else method)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    generator = np.random.default_rng(0)
    losses, start = [], time.perf_counter()
    for _ in range(iterations):
        low, high = sample(pairs, generator, batch=BATCH, augment=False)
        losses.append(training_step(network, optimizer, low, high, bf16=bf16))
    seconds = (time.perf_counter() - start) / iterations
    psnr = measure(network, validation)
    return {"network": name, "method": method, "lr": lr, "losses": losses, "psnr": psnr, "seconds": seconds}


def run(args: argparse.Namespace) -> None:
    """Train what is not yet in the output folder."""
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.networks:
        for method in args.methods:
            target = args.out / f"{name}_{method}.json"
            if target.exists() or (name == "BSRN" and method == "none"):
                continue
            record = train(name, method, args.data, args.iterations, args.lr, args.bf16)
            target.write_text(json.dumps(record))
            late = np.mean(record["losses"][-20:])
            print(
                f"{name} {method}: L1 {np.mean(record['losses'][:20]):.4f} -> {late:.4f}, Set5 {record['psnr']:.2f}, "
                f"{record['seconds']:.2f} s per iteration",
                flush=True,
            )


def plot(args: argparse.Namespace) -> None:
    """Draw the records as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(args.networks), figsize=(4.6 * len(args.networks), 3.8), sharey=True)
    for axis, name in zip(axes, args.networks, strict=True):
        for method in args.methods:
            source = args.out / f"{name}_{method}.json"
            if not source.exists():
                continue
            record = json.loads(source.read_text())
            window = np.ones(15) / 15
            smooth = np.convolve(record["losses"], window, mode="valid")
            label = f"{'full precision' if method == 'none' else method} ({record['psnr']:.2f} dB)"
            axis.plot(
                np.arange(len(smooth)) + len(window), smooth, label=label, color="0.5" if method == "none" else None
            )
        axis.set(title=name, xlabel="iteration", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(title="method (Set5 x4)", fontsize=8, title_fontsize=8)
    axes[0].set_ylabel("L1 loss, mean of 15 iterations")
    figure.tight_layout()
    figure.savefig(args.png, dpi=110)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "plot"))
    parser.add_argument("--data", type=Path, default=find_image_sets(), help="folder with T91 and Set5")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--png", type=Path, default=Path("docs/lab/training_curves.png"))
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--bf16", action="store_true", help="train under autocast to bfloat16 (faster)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.command == "run" and args.data is None:
        parser.error("run needs --data")
    {"run": run, "plot": plot}[args.command](args)


if __name__ == "__main__":
    main()
