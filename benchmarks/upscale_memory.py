"""Peak memory of upscaling one large picture file, above what the bare interpreter takes.

    python benchmarks/upscale_memory.py -m NAME_x4.bam.safetensors [--megapixels 12] [--ext png jpg webp]

The picture is made here (smooth waves plus noise, 4:3, 8-bit RGB JPEG). Each format runs in a process of its own; the
baseline is the interpreter before anything of bam_plugin or NumPy is imported. Target: 1.5 GB for 12 megapixels x4.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

_CHILD = """
import resource, sys
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
baseline = peak()
sys.path.insert(0, sys.argv[1])
from bam_plugin.upscale import Upscaler
upscaler = Upscaler(sys.argv[2])
result = upscaler.upscale_file(sys.argv[3], sys.argv[4])
print(f"| {sys.argv[4].rpartition('.')[2]} | {result.size[0]}x{result.size[1]} | {result.tiles} | {result.seconds:.0f} "
      f"| {peak() - baseline:.0f} |")
"""


def main() -> int:
    """Print one row for each output format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--ext", nargs="+", default=["png", "jpg"], choices=["png", "jpg", "webp"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photo.jpg"
        _photo(source, args.megapixels)
        print("| format | result | tiles | seconds | peak MB above the interpreter |\n|---|---|---|---|---|")
        for extension in args.ext:
            target = Path(folder) / f"large.{extension}"
            # A process's peak is inherited over fork and exec on Linux; this small parent keeps the baseline honest.
            command = [sys.executable, "-c", _CHILD, str(ROOT), args.model, str(source), str(target)]
            subprocess.run(command, check=True)
            target.unlink()
    return 0


def _photo(path: Path, megapixels: float) -> None:
    """Made in a process of its own, so that this one stays small."""
    code = """
import sys
import numpy as np
from PIL import Image
height = round((float(sys.argv[2]) * 1e6 * 3 / 4) ** 0.5)
y, x = np.mgrid[0:height, 0 : height * 4 // 3].astype(np.float32)
noise = np.random.default_rng(0).normal(0, 6, x.shape).astype(np.float32)
planes = [127 + 80 * np.sin(x / (40 + 9 * c) + np.cos(y / 70)) + noise for c in range(3)]
Image.fromarray(np.stack(planes, axis=2).clip(0, 255).astype(np.uint8)).save(sys.argv[1], quality=92)
"""
    subprocess.run([sys.executable, "-c", code, str(path), str(megapixels)], check=True)


if __name__ == "__main__":
    sys.exit(main())
