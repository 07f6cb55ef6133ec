"""`make demo`: the whole road on the photos that scikit-image carries, in some minutes on two CPU cores.

Photos -> LMDB -> training and testing through BasicSR -> packed file -> upscaled photos, all below `demo/`. What is
there already is reused, so a second run only repeats the cheap steps; remove the folder to start afresh. The held-out
photos are never trained on.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = REPOSITORY / "demo"
NAME = "demo_BSRN_x4"
SCALE = 4
TRAIN_OPTIONS = REPOSITORY / f"options/train/demo/{NAME}.yml"
TEST_OPTIONS = REPOSITORY / f"options/test/demo/{NAME}.yml"

# Files of skimage/data in scikit-image's wheel. The two motorcycle photos are a stereo pair, so both are trained on.
TRAINING_PHOTOS = [
    "coffee.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
]
HELD_OUT_PHOTOS = ["astronaut.png", "chelsea.png", "rocket.jpg"]


@dataclass(frozen=True)
class PhotoResult:
    """One held-out photo: the pictures (BGR uint8), PSNR in dB, SSIM, and how packed and network differ."""

    name: str
    original: np.ndarray
    pictures: dict[str, np.ndarray]
    psnr: dict[str, float]
    ssim: dict[str, float]
    differing: int
    within_one: float


def say(text: str) -> None:
    """One line of progress on standard error."""
    sys.stderr.write(f"[demo] {text}\n")
    sys.stderr.flush()


def read(path: Path) -> np.ndarray:
    """The picture in `path`, uint8 (H, W, 3), BGR."""
    picture = cv2.imread(str(path))
    assert picture is not None, path
    return picture


def prepare_photos() -> None:
    """LMDBs of HR and LR sub-images for training, folders of HR and LR images for the held-out photos."""
    import skimage

    from bam_plugin.data.benchmarks import prepare_benchmark
    from bam_plugin.data.prepare import prepare_training_set
    from bam_plugin.data.storage import AlreadyPreparedError

    source = Path(skimage.__file__).parent / "data"
    held_out = DEMO / "data/photos_held_out"
    held_out.mkdir(parents=True, exist_ok=True)
    for name in HELD_OUT_PHOTOS:
        (held_out / name).write_bytes((source / name).read_bytes())
    with contextlib.suppress(AlreadyPreparedError):
        prepare_training_set(
            [source / name for name in TRAINING_PHOTOS], DEMO / "data", scales=(SCALE,), crop_size=240, step=120
        )
    with contextlib.suppress(AlreadyPreparedError):
        prepare_benchmark(held_out, DEMO / "data", name="held_out", scales=(SCALE,))


def train_and_test() -> Path:
    """Train (or resume, or reuse) through BasicSR's train_pipeline, test through its test_pipeline; the checkpoint."""
    from bam_plugin.train import testing, training

    checkpoint = DEMO / f"experiments/{NAME}/models/net_g_latest.pth"
    if checkpoint.exists():
        say(f"reusing {checkpoint.relative_to(REPOSITORY)}")
    else:
        training.train(["-opt", str(TRAIN_OPTIONS), "--auto_resume"])
    testing.test(["-opt", str(TEST_OPTIONS)])
    return checkpoint


def convert(checkpoint: Path) -> tuple[Path, dict]:
    """The packed file, made by the same script that users call, and what it found when it compared on the photos."""
    packed, report = DEMO / f"{NAME}.bam.safetensors", DEMO / "conversion.json"
    photos = sorted((DEMO / f"data/held_out/LRbicx{SCALE}").glob("*.png"))
    command = [sys.executable, str(REPOSITORY / "tools/convert_binary.py"), "--force", "--report", str(report)]
    command += ["-i", str(checkpoint), "-opt", str(TRAIN_OPTIONS), "-o", str(packed), "--images", *map(str, photos)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return packed, json.loads(report.read_text(encoding="utf-8"))["comparison"]


def upscale_and_measure(packed: Path) -> list[PhotoResult]:
    """Upscale the held-out photos with the packed file and measure bicubic, the network in PyTorch, and packed."""
    from bam_plugin.data.metrics import calculate_psnr_y, calculate_ssim_y
    from bam_plugin.pictures.imresize import imresize
    from bam_plugin.upscale import Upscaler

    upscaler = Upscaler(packed)
    tested = DEMO / f"results/{NAME}/visualization/held_out"
    output = DEMO / "upscaled"
    output.mkdir(exist_ok=True)
    results = []
    for low_path in sorted((DEMO / f"data/held_out/LRbicx{SCALE}").glob("*.png")):
        name = low_path.stem
        upscaler.upscale_file(low_path, output / f"{name}_packed.png")
        original = read(DEMO / f"data/held_out/GTmod{SCALE}/{name}.png")
        pictures = {
            "bicubic": imresize(read(low_path), scale=SCALE),
            "network": read(tested / f"{name}_network.png"),
            "packed": read(output / f"{name}_packed.png"),
        }
        difference = np.abs(pictures["packed"].astype(int) - pictures["network"])
        results.append(
            PhotoResult(
                name=name,
                original=original,
                pictures=pictures,
                psnr={method: calculate_psnr_y(image, original, SCALE) for method, image in pictures.items()},
                ssim={method: calculate_ssim_y(image, original, SCALE) for method, image in pictures.items()},
                differing=int((difference > 0).sum()),
                within_one=float((difference <= 1).mean()),
            )
        )
    return results


def draw(results: list[PhotoResult], path: Path) -> None:
    """The comparison picture: for each photo bicubic, the network in PyTorch, packed, and the original."""
    from bam_plugin.pictures.sheet import ComparedImage, Panel, choose_box, draw_sheet

    titles = {"bicubic": "Bicubic", "network": "Network (PyTorch)", "packed": "Packed (1 bit)"}
    comparisons = []
    for result in results:
        panels = [
            Panel(title, result.pictures[method], result.psnr[method], result.ssim[method])
            for method, title in titles.items()
        ]
        panels.append(Panel("HR", result.original))
        box = choose_box(result.original, [result.pictures["bicubic"], result.pictures["packed"]], 72)
        comparisons.append(ComparedImage(result.name, panels, box))
    cv2.imwrite(str(path), draw_sheet(comparisons))


def table(results: list[PhotoResult]) -> str:
    """Markdown: PSNR / SSIM by photo and method, their means, and the agreement of packed and PyTorch results."""
    methods = list(results[0].psnr)
    lines = ["| photo | " + " | ".join(methods) + " | 8-bit values that differ | differ by more than 1 |"]
    lines.append("|---|" + "---|" * (len(methods) + 2))
    for result in results:
        cells = [f"{result.psnr[method]:.2f} / {result.ssim[method]:.4f}" for method in methods]
        cells += [f"{result.differing} of {result.original.size}", f"{1 - result.within_one:.4%}"]
        lines.append(f"| {result.name} | " + " | ".join(cells) + " |")
    cells = [
        f"{np.mean([result.psnr[method] for result in results]):.2f} / "
        f"{np.mean([result.ssim[method] for result in results]):.4f}"
        for method in methods
    ]
    lines.append("| **mean** | " + " | ".join(cells) + " | | |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Walk the road; the last lines say where to look and what was measured."""
    start = time.monotonic()
    DEMO.mkdir(exist_ok=True)
    os.chdir(DEMO)
    say("preparing LMDBs from scikit-image's photos")
    prepare_photos()
    checkpoint = train_and_test()
    say("converting the checkpoint to packed bits")
    packed, comparison = convert(checkpoint)
    say("upscaling the held-out photos with the packed file")
    results = upscale_and_measure(packed)
    draw(results, DEMO / "comparison.png")
    flips = sum(flipped for flipped, _ in comparison["flips"].values())
    signs = sum(number for _, number in comparison["flips"].values())
    facts = (
        f"Signs that packed bits and PyTorch's floats decide differently: {flips:,} of {signs:,} in all layers, on "
        f"{comparison['images']} pictures.\n\nThe packed file has {packed.stat().st_size:,} bytes, the checkpoint "
        f"{checkpoint.stat().st_size:,} (trained weights and their average).\n"
    )
    text = (
        "PSNR (dB) / SSIM on Y, 4 border pixels cropped, on photos that were never trained on. `network` is "
        f"BasicSR's test of the checkpoint, `packed` the picture that the packed file made.\n\n"
        f"{table(results)}\n{facts}"
    )
    (DEMO / "results.md").write_text(f"# What `make demo` measured\n\n{text}", encoding="utf-8")
    gain = np.mean([result.psnr["packed"] - result.psnr["bicubic"] for result in results])
    agreement = min(result.within_one for result in results)
    print(
        f"\n{text}\nLook at {DEMO / 'comparison.png'} and {DEMO / 'results.md'}; upscaled photos are in "
        f"{DEMO / 'upscaled'}.\nCurves: .venv/bin/tensorboard --logdir {DEMO / 'tb_logger'}\n"
        f"Measured in {time.monotonic() - start:.0f} s: packed network {gain:+.2f} dB over bicubic on {len(results)} "
        f"held-out photos; packed and PyTorch within 1 of 255 in {agreement:.3%} of the values."
    )
    if gain < 0.3 or agreement < 0.999:
        say("this is less than the demo promises (+0.3 dB, 99.9 %): remove the demo folder and run it again")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
