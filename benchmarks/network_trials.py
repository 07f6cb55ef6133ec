"""Which network a time should buy: variants around PlainBSR at one small, equal budget, for docs/lab/networks.md.

    python benchmarks/network_trials.py [VARIANT ...] --data DIR [--seed N] [--iterations N] [--results FILE]
    python benchmarks/network_trials.py [VARIANT ...] --time [--precision int8]

`--data` is a folder with T91, BSDS400, CC0_photos, CID22_photos, CLIC_half (trained on) and DIV2K_valid_crop256
(measured: Y-PSNR of the 8-bit result, cropped by 4). Every variant: x4, batch 8, LR patch 32, L1, Adam at 1e-3 behind
100 iterations of warm-up, falling to 0 in the second half, bfloat16 autocast, averaged weights, 2,000 iterations. A
seed fixes the start and the patches, which are equal for all variants. Each result is appended to `--results` as it
comes; what is there already is not trained again.

`--time` trains nothing and prints each variant's milliseconds on the packed engine, see packed_cpu_time.py. Weights do
not change the time.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from packed_cpu_time import network_milliseconds
from small_training import Pairs, Results, measure, read_pairs, sample, training_step
from torch import Tensor, nn
from tqdm import tqdm

from bam_plugin.data.image_sets import find_image_sets
from bam_plugin.models.training_stages import StagedTraining
from bam_plugin.nn import BinaryLayer, RPReLU
from bam_plugin.packed.precision import FLOAT, PRECISIONS
from bam_plugin.toolbox.networks import build_network

BATCH, PATCH, WARM_UP, RATE, AVERAGE = 8, 32, 100, 1e-3, 0.999
TRAINING_SETS = ("T91", "BSDS400/train", "BSDS400/test", "CC0_photos", "CID22_photos", "CLIC_half")


class Rescaled(nn.Module):
    """A binary layer whose convolution's result is multiplied by factors made from its input (1 at the start).

    spatial: a map, 2 sigmoid(conv1x1(x)). channel: a factor per channel, 2 sigmoid of a 5-tap convolution along the
    channels' means (EBSR, SCALES).
    """

    def __init__(self, *, layer: BinaryLayer, spatial: bool, channel: bool) -> None:
        super().__init__()
        self.conv = layer.conv
        self.spatial = nn.Conv2d(layer.conv.in_channels, 1, 1) if spatial else None
        self.channel = nn.Conv1d(1, 1, 5, padding=2) if channel else None
        for part in (self.spatial, self.channel):
            if part is not None:
                for parameter in part.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, x: Tensor, previous: Sequence[Tensor] = (), identity: Tensor | None = None) -> Tensor:
        """See BinaryLayer."""
        out = self.conv(x, previous)
        if self.spatial is not None:
            out = out * (2 * torch.sigmoid(self.spatial(x)))
        if self.channel is not None:
            means = self.channel(x.float().mean(dim=(2, 3))[:, None])
            out = out * (2 * torch.sigmoid(means))[:, 0, :, None, None]
        return out + (x if identity is None else identity)


class BranchedConv(nn.Module):
    """A 3x3 convolution whose filter is the sum of branches (ECBSR), added up before the convolution.

    The branches: 3x3; 1x1 to twice the channels and 3x3; 1x1 and Sobel filters of both directions and the Laplacian;
    the identity where the channels are equal.
    """

    identity: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.main = conv
        out, inner = conv.weight.shape[:2]
        self.first = nn.Parameter(torch.empty(2 * max(out, inner), inner))
        self.second = nn.Parameter(torch.empty(out, 2 * max(out, inner), 3, 3))
        nn.init.kaiming_uniform_(self.first, a=5**0.5)
        nn.init.kaiming_uniform_(self.second, a=5**0.5)
        self.edges = nn.Parameter(torch.zeros(3, out, inner))
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        laplace = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
        self.register_buffer("masks", torch.stack([sobel, sobel.t(), laplace]))
        identity = torch.zeros(out, inner, 3, 3)
        if out == inner:
            identity[range(out), range(out), 1, 1] = 1
        self.register_buffer("identity", identity)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, H, W)."""
        weight = self.main.weight + self.identity
        weight = weight + torch.einsum("omhw,mi->oihw", self.second, self.first)
        weight = weight + torch.einsum("eoi,ehw->oihw", self.edges, self.masks)
        return F.conv2d(x, weight, self.main.bias, padding=1)


def replace_layers(network: nn.Module, make: Callable[[BinaryLayer], nn.Module]) -> None:
    """Put make(layer) in the place of each binary layer."""
    for parent in [module for module in network.modules() if not isinstance(module, BinaryLayer)]:
        for name, child in list(parent.named_children()):
            if isinstance(child, BinaryLayer):
                setattr(parent, name, make(child))


def rescale(*, spatial: bool = False, channel: bool = False) -> Callable[[nn.Module], None]:
    """Input-dependent factors behind each binary convolution."""
    return lambda network: replace_layers(
        network, lambda layer: Rescaled(layer=layer, spatial=spatial, channel=channel)
    )


def rectify(make: Callable[[int], nn.Module], *, first: bool) -> Callable[[nn.Module], None]:
    """make(channels) behind each binary convolution: before (`first`) or after the identity path is added."""

    def change(network: nn.Module) -> None:
        for layer in [module for module in network.modules() if isinstance(module, BinaryLayer)]:
            layer.rprelu, layer.rprelu_first = make(layer.conv.out_channels), first  # type: ignore[assignment]

    return change


def branch_stem(network: nn.Module) -> None:
    """Branches in the thin 3x3 convolutions, which become one convolution after the training."""
    for index, conv in enumerate(list(network.stem)):  # type: ignore[arg-type]
        if isinstance(conv, nn.Conv2d):
            network.stem[index] = BranchedConv(conv)  # type: ignore[index, operator]
    network.stem_tail = BranchedConv(network.stem_tail)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a variant differs from PlainBSR with the options of `options`."""

    options: dict[str, Any] = field(default_factory=dict)
    change: Callable[[nn.Module], None] | None = None
    stages: dict[str, int] = field(default_factory=dict)


def plain(
    change: Callable[[nn.Module], None] | None = None, stages: dict[str, int] | None = None, **options: Any
) -> Variant:
    """Twelve binary layers of 64 channels, no depthwise convolution, and what is given."""
    return Variant(options={"head_kernel": 1, **options}, change=change, stages=stages or {})


def planes(change: Callable[[nn.Module], None] | None = None, **options: Any) -> Variant:
    """Five steps of two layers beside each other, a depthwise convolution behind each, and what is given."""
    return Variant(
        options={"num_group": 5, "num_planes": 2, "depthwise": True, "head_kernel": 1, **options}, change=change
    )


def full_precision(num_feat: int, num_conv: int) -> Variant:
    """BasicSR's SRVGGNetCompact."""
    return Variant(options={"type": "SRVGGNetCompact_basicsr", "num_feat": num_feat, "num_conv": num_conv})


VARIANTS: dict[str, Variant] = {
    "float_10x16": full_precision(16, 10),
    "float_4x32": full_precision(32, 4),
    "float_10x32": full_precision(32, 10),
    # What the binary body gives, and how its depth and its width trade.
    "no_body": plain(num_group=0),
    "plain_4": plain(num_group=4),
    "plain_6": plain(num_group=6),
    "plain_8": plain(num_group=8),
    "plain_12": plain(),
    "plain_16": plain(num_group=16),
    "plain_24": plain(num_group=24),
    "plain_6_two_planes": plain(num_group=6, num_planes=2),
    "plain_4_three_planes": plain(num_group=4, num_planes=3),
    "plain_6_two_weight_planes": plain(num_group=6, weight_binarizer="sketch"),
    "plain_12_two_weight_planes": plain(weight_binarizer="sketch"),
    "plain_6_of_96": plain(num_group=6, num_feat=96),
    "plain_3_of_128": plain(num_group=3, num_feat=128),
    # Full-precision operations between the binary layers.
    "depthwise_behind_each": plain(num_group=8, depthwise=True),
    "depthwise_behind_4": plain(num_group=3, num_convs=4, depthwise=True),
    "depthwise_at_the_end": plain(num_group=1, num_convs=12, depthwise=True),
    "planes": planes(),
    "planes_3x3_head_and_tail": planes(head_kernel=3, tail_kernel=3),
    "planes_two_thirds": planes(num_group=3),
    # The thin path, head and tail.
    "3x3_head": plain(head_kernel=3),
    "3x3_tail": plain(tail_kernel=3),
    "3x3_head_and_tail": plain(head_kernel=3, tail_kernel=3),
    "stem_1": plain(num_stem=1),
    "stem_2": plain(num_stem=2),
    "stem_5": plain(num_stem=5),
    "stem_of_24": plain(stem_feat=24),
    "stem_of_32": plain(stem_feat=32),
    "branched_stem": plain(branch_stem),
    # Around the binary convolutions.
    "rprelu_before": plain(rectify(lambda channels: RPReLU(num_feat=channels), first=True)),
    "prelu_after": plain(rectify(lambda channels: nn.PReLU(channels, init=1.0), first=False)),
    "spatial_factor": plain(rescale(spatial=True)),
    "channel_factor": plain(rescale(channel=True)),
    "both_factors": plain(rescale(spatial=True, channel=True)),
    "scale_0.03": plain(output_scale_init=0.03),
    "scale_0.3": plain(output_scale_init=0.3),
    # Binarizers and their gradients.
    "react_weights": plain(weight_binarizer="react"),
    "polynomial": plain(activation_options={"estimator": "polynomial"}),
    "identity_gradient": plain(activation_options={"estimator": "identity"}),
    "learned_thresholds": plain(activation_binarizer="rsign"),
    # Bit accumulation, in groups of four.
    "bam_weights": plain(num_group=3, num_convs=4, accumulate_weights=True),
    "bam_activations": plain(num_group=3, num_convs=4, accumulate_activations=True),
    "bam": plain(num_group=3, num_convs=4, accumulate_weights=True, accumulate_activations=True),
    # Full precision first.
    "staged": plain(stages={"float": 500, "binary_activations": 500}),
}


def build(variant: Variant) -> nn.Module:
    """The network of a variant, untrained."""
    network = build_network({"type": "PlainBSR", "upscale": 4, **variant.options})
    if variant.change is not None:
        variant.change(network)
    return network.to(memory_format=torch.channels_last)


def train(variant: Variant, pairs: Pairs, iterations: int, seed: int) -> nn.Module:
    """Train one variant; its average."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    network = build(variant)
    average = copy.deepcopy(network).requires_grad_(False)
    stages = StagedTraining(lengths=variant.stages, networks=[network, average]) if variant.stages else None
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    for iteration in tqdm(range(1, iterations + 1), leave=False, mininterval=10):
        if stages is not None:
            stages.enter(iteration)
        falling = min(1, 2 * (1 - (iteration - 1) / iterations))
        optimizer.param_groups[0]["lr"] = RATE * falling * min(1, iteration / WARM_UP)
        low, high = sample(pairs, generator, batch=BATCH, patch=PATCH, augment=True)
        training_step(network, optimizer, low, high, bf16=True)
        share = 1 - min(AVERAGE, (iteration + 1) / (iteration + 10))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in network.parameters()], share)
        if stages is not None:
            stages.leave(iteration)
    for mine, trained in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(trained)
    return average


def main() -> None:
    """Train the variants named on the command line (all of them by default), or print their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--data", type=Path, default=find_image_sets(), help="folder of the image sets")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="JSON lines, one a result")
    parser.add_argument("--time", action="store_true", help="measure the engine, train nothing")
    parser.add_argument("--precision", choices=PRECISIONS, default=FLOAT, help="with --time: of the float layers")
    args = parser.parse_args()
    if unknown := set(args.variants) - set(VARIANTS):
        parser.error(f"unknown variants {sorted(unknown)}; there are: {', '.join(VARIANTS)}")
    torch.set_num_threads(1)
    names = args.variants or list(VARIANTS)
    if args.time:
        networks = {name: build(VARIANTS[name]) for name in names}
        for name, value in network_milliseconds(networks, precision=args.precision).items():
            print(f"{name}: {value:.1f} ms")
        return
    root: Path = args.data or parser.error("--data is needed to train")
    results = Results(args.results)
    pairs = [pair for name in TRAINING_SETS for pair in read_pairs(root / name, patch=PATCH)]
    validation = read_pairs(root / "DIV2K_valid_crop256", patch=PATCH)
    for name in names:
        key = {"variant": name, "seed": args.seed, "iterations": args.iterations}
        if results.has(key):
            continue
        start = time.process_time()
        psnr = measure(train(VARIANTS[name], pairs, args.iterations, args.seed), validation)
        print(f"{name}, seed {args.seed}: {psnr:.3f} dB", flush=True)
        results.add(key, psnr=psnr, seconds=round(time.process_time() - start))


if __name__ == "__main__":
    main()
