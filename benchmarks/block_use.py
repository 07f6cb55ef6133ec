"""What each LB block of a trained BSRN contributes, for docs/lab/training.md.

    python benchmarks/block_use.py CHECKPOINT [--stage float] --data DIR [--every 4]

For every LB block: the change of PSNR in dB where its 3x3 convolution gives 0 everywhere, and where its two 1x1
convolutions do, on every `--every`-th image of DIV2K_valid_crop256 in `--data` (Y-PSNR of the 8-bit result, cropped by
the scale). A convolution that costs nothing to leave out does nothing. `--stage` computes as that stage of a staged
training does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from small_training import Pairs, measure, read_pairs

from bam_plugin.archs.bsrn_arch import BSRN
from bam_plugin.data.image_sets import find_image_sets
from bam_plugin.models.training_stages import STAGES
from bam_plugin.nn import BinaryConv2d, LBBlock
from bam_plugin.nn.binary_conv import set_mode
from bam_plugin.toolbox.networks import build_network, load_weights, read_checkpoint


def change_without(network: BSRN, convs: Sequence[BinaryConv2d], pairs: Pairs, whole: float) -> float:
    """PSNR in dB with the results of `convs` left out, less `whole`."""
    factors = [conv.output_scale for conv in convs if conv.output_scale is not None]
    assert len(factors) == len(convs)
    kept = [factor.detach().clone() for factor in factors]
    with torch.no_grad():
        for factor in factors:
            factor.zero_()
        change = measure(network, pairs) - whole
        for factor, value in zip(factors, kept, strict=True):
            factor.copy_(value)
    return change


def main() -> None:
    """Print two lines of changes, in the order of the blocks."""
    sets = find_image_sets()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--data", type=Path, default=sets, required=sets is None, help="folder of the image sets")
    parser.add_argument("--every", type=int, default=4)
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.checkpoint)
    options = checkpoint.network_g or {"type": "BSRN", "num_feat": 64, "num_hpb": 6, "upsampler": "pixelshuffledirect"}
    network = build_network(options)
    assert isinstance(network, BSRN)
    load_weights(network, {name: value.float() for name, value in checkpoint.state.items()}, str(args.checkpoint))
    if args.stage:
        set_mode(network, args.stage)
    pairs = read_pairs(args.data / "DIV2K_valid_crop256")[:: args.every]
    whole = measure(network.eval(), pairs)
    blocks = [module for module in network.modules() if isinstance(module, LBBlock)]
    print(f"whole: {whole:.3f} dB")
    for title, names in (("3x3", ("conv3",)), ("1x1", ("conv1_a", "conv1_b"))):
        changes = [change_without(network, [getattr(block, name) for name in names], pairs, whole) for block in blocks]
        print(title, *(f"{change:+.3f}" for change in changes))


if __name__ == "__main__":
    main()
