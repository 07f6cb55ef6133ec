r"""PSNR and SSIM of shipped networks at scales that they were not trained for, as docs/upscale.md states them.

    python benchmarks/other_scales.py bsrn_light bsrn_light_cc0 --sets Set5 Set14

Prints one row a network and set. Pictures are shrunk by the scale and enlarged again by it, as `bam upscale -s` does.
"""

from __future__ import annotations

import argparse

from bam_plugin.data.evaluation import evaluate
from bam_plugin.data.image_sets import find_set
from bam_plugin.packed.format import read_model
from bam_plugin.packed.zoo import find_model


def main() -> None:
    """Print a row of the table for each network and set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="names of shipped networks, or packed files")
    parser.add_argument("--sets", nargs="+", default=["Set5", "Set14"])
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 3, 4])
    args = parser.parse_args()
    for name in args.networks:
        model = read_model(find_model(name))
        for each in args.sets:
            results = [evaluate(model, find_set(each), scale=scale) for scale in args.scales]
            print(f"| `{name}` | {each} | {' | '.join(f'{result.psnr:.2f}' for result in results)} |", flush=True)


if __name__ == "__main__":
    main()
