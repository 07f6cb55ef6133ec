"""Which reading of BSRN trains? One short training of each variant on the same patches, for docs/training.md.

    python benchmarks/what_trains.py --data DIR [VARIANT ...]

`--data` is a folder with T91, BSDS400, CC0_photos (trained on) and DIV2K_valid_crop256 (every fourth image is
measured: Y-PSNR of the 8-bit result, cropped by 4). Every variant: BSRN x4 of 4 HPB blocks of 2 LB blocks with 48
channels and the light tail, batch 8, LR patch 24, L1, Adam at 1e-3 behind 100 iterations of warm-up with a cosine,
bfloat16 autocast, 1500 iterations, seed 0. `no_body` has no HPB block: what a variant gains over it is what its binary
body does.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bam_plugin.archs.bsrn_arch import BSRN, LITERAL
from bam_plugin.data.images import list_images, read_image
from bam_plugin.data.metrics import calculate_psnr_y
from bam_plugin.data.resize import imresize, mod_crop

SCALE, PATCH, BATCH, WARM_UP = 4, 24, 8, 100
TRAINING_SETS = ("T91", "BSDS400/train", "BSDS400/test", "CC0_photos")
VARIANTS: dict[str, dict[str, Any]] = {
    "no_body": {"num_hpb": 0},
    "literal": {**LITERAL, "upsampler": "pixelshuffledirect"},
    "default": {},
    "no_identity": {"identity": False},
    "gain_1": {"latent_gain": 1.0},
    "gain_1_scale_0.03": {"latent_gain": 1.0, "output_scale_init": 0.03},
    "gain_1_offsets_1_0": {"latent_gain": 1.0, "beta_offset": (1.0, 0.0)},
    "gain_0.2": {"latent_gain": 0.2},
    "gain_0.2_scale_0.5": {"latent_gain": 0.2, "output_scale_init": 0.5},
    "no_weight_accumulation": {"long_range": False, "short_range": False},
    "gradient_accumulated": {"weight_gradient": "accumulated"},
    "beta_scalar": {"beta": "scalar"},
}


def read_pairs(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(HR, LR) of every image of `folder` that holds a patch, RGB uint8."""
    images = [mod_crop(read_image(path), SCALE)[..., ::-1] for path in list_images(folder)]
    pairs = [(np.ascontiguousarray(image), imresize(image, scale=1 / SCALE)) for image in images]
    return [(high, low) for high, low in pairs if min(low.shape[:2]) >= PATCH]


def sample(pairs: list[tuple[np.ndarray, np.ndarray]], generator: np.random.Generator) -> list[torch.Tensor]:
    """One batch of LR and HR patches, flipped and turned, (N, 3, P, P) and (N, 3, 4 P, 4 P) in [0, 1]."""
    batch: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for index in generator.integers(len(pairs), size=BATCH):
        high, low = pairs[index]
        row, column = (int(generator.integers(side - PATCH + 1)) for side in low.shape[:2])
        flip, turns = 1 - 2 * int(generator.integers(2)), int(generator.integers(4))
        for patches, image, factor in ((batch[0], low, 1), (batch[1], high, SCALE)):
            size = PATCH * factor
            patch = image[row * factor : row * factor + size, column * factor : column * factor + size]
            patches.append(np.rot90(patch[:, ::flip], turns))
    return [torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float().div(255) for patches in batch]


@torch.no_grad()
def measure(network: torch.nn.Module, pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean Y-PSNR in dB."""
    network.eval()
    values = []
    for high, low in pairs:
        image = torch.from_numpy(low).permute(2, 0, 1)[None].float().div(255)
        out = network(image)[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte().numpy()
        values.append(calculate_psnr_y(out[..., ::-1], high[..., ::-1], SCALE))
    network.train()
    return float(np.mean(values))


def train(
    options: dict[str, Any], pairs: list[tuple[np.ndarray, np.ndarray]], iterations: int, lr: float
) -> tuple[torch.nn.Module, float]:
    """Train one variant; the network and the mean loss of the last third."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    network = BSRN(**{"num_hpb": 4, "upsampler": "pixelshuffledirect", **options})
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    losses = []
    for iteration in tqdm(range(1, iterations + 1), leave=False):
        factor = min(1, iteration / WARM_UP) * (1 + math.cos(math.pi * iteration / iterations)) / 2
        optimizer.param_groups[0]["lr"] = lr * factor
        low, high = sample(pairs, generator)
        with torch.autocast("cpu", torch.bfloat16):
            out = network(low.contiguous(memory_format=torch.channels_last))
        loss = (out.float() - high).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return network, float(np.mean(losses[-iterations // 3 :]))


def main() -> None:
    """Train the variants named on the command line (all of them by default) and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    unknown = set(args.variants) - set(VARIANTS)
    if unknown:
        parser.error(f"unknown variants {sorted(unknown)}; there are: {', '.join(VARIANTS)}")
    torch.set_num_threads(args.threads)
    pairs = [pair for name in TRAINING_SETS for pair in read_pairs(args.data / name)]
    validation = read_pairs(args.data / "DIV2K_valid_crop256")[::4]
    for name in args.variants or VARIANTS:
        network, loss = train(VARIANTS[name], pairs, args.iterations, args.lr)
        print(f"{name}: L1 {loss:.5f}, {measure(network, validation):.3f} dB", flush=True)


if __name__ == "__main__":
    main()
