"""Which reading of BSRN trains, and what each part of bit accumulation gives, for docs/lab/training.md.

    python benchmarks/what_trains.py [VARIANT ...] --data DIR [--seeds 0 1 2] [--results FILE] [--time]

`--data` is a folder with T91, BSDS400, CC0_photos (trained on) and DIV2K_valid_crop256 (every fourth image is
measured: Y-PSNR of the 8-bit result, cropped by 4). Every variant: BSRN x4 of 4 HPB blocks of 2 LB blocks with 48
channels and the light tail, batch 8, LR patch 24, L1, Adam at 1e-3 behind 100 iterations of warm-up with a cosine,
bfloat16 autocast, 1500 iterations. A seed fixes the start and the patches: equal for all variants. `no_body` has no
HPB block: what a variant gains over it is what its binary body does. `float_twin` computes in full precision.

The variants `bam`, `W1`, `W2`, `A1` and `A2` are the paper's ablation (its Table 4), all with identity paths,
as the methods of options/train/BSRN/train_BSRN_x4.yml have them.
Each result is appended to `--results` as it comes; what is there already is not trained again. `--time` trains nothing
and prints the variants' milliseconds on the packed engine, see packed_cpu_time.py.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packed_cpu_time import network_milliseconds
from small_training import Pairs, Results, measure, read_pairs, sample, training_step
from tqdm import tqdm

from bam_plugin.archs.bsrn_arch import BSRN, LITERAL
from bam_plugin.data.image_sets import find_image_sets
from bam_plugin.nn import BinaryConv2d, RPReLU, set_progress
from bam_plugin.nn.binary_conv import set_mode

BATCH, WARM_UP, RATE = 8, 100, 1e-3
TRAINING_SETS = ("T91", "BSDS400/train", "BSDS400/test", "CC0_photos")


def make_float(network: BSRN) -> None:
    """Full precision throughout: latent weights, and hardtanh in place of signs."""
    set_mode(network, "float")


def add_rprelu(network: BSRN) -> None:
    """A learned rectifier with two shifts per channel behind each binary convolution, inside the paths around it."""
    for module in [module for module in network.modules() if isinstance(module, BinaryConv2d)]:
        module.add_module("rprelu", RPReLU(num_feat=module.out_channels))
        module.register_forward_hook(lambda conv, inputs, output: conv.get_submodule("rprelu")(output))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a variant differs from the default."""

    options: dict[str, Any] = field(default_factory=dict)
    rate: float = RATE
    change: Callable[[BSRN], None] | None = None


VARIANTS: dict[str, Variant] = {
    "no_body": Variant(options={"num_hpb": 0}),
    "literal": Variant(options={**LITERAL, "upsampler": "pixelshuffledirect"}),
    "default": Variant(),
    "default_rate_2e-3": Variant(rate=2e-3),
    "float_twin": Variant(change=make_float),
    "no_identity": Variant(options={"identity": False}),
    "gain_1": Variant(options={"latent_gain": 1.0}),
    "gain_1_scale_0.03": Variant(options={"latent_gain": 1.0, "output_scale_init": 0.03}),
    "gain_1_offsets_1_0": Variant(options={"latent_gain": 1.0, "beta_offset": (1.0, 0.0)}),
    "gain_0.2": Variant(options={"latent_gain": 0.2}),
    "gain_0.2_scale_0.5": Variant(options={"latent_gain": 0.2, "output_scale_init": 0.5}),
    "no_weight_accumulation": Variant(options={"long_range": False, "short_range": False}),
    "gradient_accumulated": Variant(options={"weight_gradient": "accumulated"}),
    "polynomial": Variant(options={"activation_estimator": "polynomial"}),
    "ede": Variant(options={"activation_estimator": "ede"}),
    "beta_scalar": Variant(options={"beta": "scalar"}),
    "beta_of_figure": Variant(options={"beta_init": (1.0, 1.0), "beta_offset": (0.0, 0.0)}),
    "beta_init_0.5": Variant(options={"beta_init": (0.5, 0.5)}),
    "sign": Variant(options={"activation_binarizer": "sign"}),
    "rsign": Variant(options={"activation_binarizer": "rsign"}),
    "rsign_rprelu": Variant(options={"activation_binarizer": "rsign"}, change=add_rprelu),
    "rprelu": Variant(change=add_rprelu),
    "no_output_scale": Variant(options={"output_scale": None}),
    "no_skip": Variant(options={"global_skip": None}),
    "bicubic_skip": Variant(options={"global_skip": "bicubic"}),
    "paper_tail": Variant(options={"upsampler": "pixelshuffle"}),
    "no_body_paper_tail": Variant(options={"upsampler": "pixelshuffle", "num_hpb": 0}),
    "no_body_no_skip": Variant(options={"global_skip": None, "num_hpb": 0}),
    "no_body_bicubic_skip": Variant(options={"global_skip": "bicubic", "num_hpb": 0}),
    "bam": Variant(options={"alpha": "learned"}),
    "W1": Variant(),
    "W2": Variant(options={"long_range": False, "short_range": False}),
    "A1": Variant(options={"alpha": "learned", "beta": "one"}),
    "A1_beta_1": Variant(options={"alpha": "learned", "beta": "one", "beta_offset": (1.0, 1.0)}),
    "A2": Variant(options={"alpha": "learned", "accumulate_activations": False}),
}


def build(variant: Variant) -> BSRN:
    """The network of a variant, untrained."""
    network = BSRN(**{"num_hpb": 4, "upsampler": "pixelshuffledirect", **variant.options})
    if variant.change is not None:
        variant.change(network)
    return network.to(memory_format=torch.channels_last)


def train(variant: Variant, pairs: Pairs, iterations: int, seed: int) -> tuple[torch.nn.Module, float]:
    """Train one variant; the network and the mean loss of the last third."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    network = build(variant)
    optimizer = torch.optim.Adam(network.parameters(), lr=variant.rate)
    losses = []
    for iteration in tqdm(range(1, iterations + 1), leave=False, mininterval=10):
        factor = min(1, iteration / WARM_UP) * (1 + math.cos(math.pi * iteration / iterations)) / 2
        optimizer.param_groups[0]["lr"] = variant.rate * factor
        set_progress(network, iteration / iterations)
        low, high = sample(pairs, generator, batch=BATCH, augment=True)
        losses.append(training_step(network, optimizer, low, high, bf16=True))
    return network, float(np.mean(losses[-iterations // 3 :]))


def main() -> None:
    """Train the variants named on the command line (all of them by default) and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--data", type=Path, default=find_image_sets(), help="folder of the image sets")
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, help="JSON lines, one a result")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", action="store_true", help="measure the engine, train nothing")
    args = parser.parse_args()
    unknown = set(args.variants) - set(VARIANTS)
    if unknown:
        parser.error(f"unknown variants {sorted(unknown)}; there are: {', '.join(VARIANTS)}")
    torch.set_num_threads(args.threads)
    if args.time:
        # What changes a network by hooks or stages does not show in its packed graph.
        chosen = [name for name in args.variants or VARIANTS if VARIANTS[name].change is None]
        networks = {name: build(VARIANTS[name]) for name in chosen}
        for name, value in network_milliseconds(networks).items():
            print(f"{name}: {value:.1f} ms")
        return
    root: Path = args.data or parser.error("--data is needed to train")
    results = Results(args.results)
    pairs = [pair for name in TRAINING_SETS for pair in read_pairs(root / name)]
    validation = read_pairs(root / "DIV2K_valid_crop256")[::4]
    for seed in args.seeds:
        for name in args.variants or VARIANTS:
            key = {"variant": name, "seed": seed, "iterations": args.iterations}
            if results.has(key):
                continue
            network, loss = train(VARIANTS[name], pairs, args.iterations, seed)
            psnr = measure(network, validation)
            print(f"{name}, seed {seed}: L1 {loss:.5f}, {psnr:.3f} dB", flush=True)
            results.add(key, l1=loss, psnr=psnr)


if __name__ == "__main__":
    main()
