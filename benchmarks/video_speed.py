"""Frames a second of clips, end to end: `upscale_video` beside pipes of raw frames through the ffmpeg program.

    python benchmarks/video_speed.py --photos FOLDER [--sizes 320x180 480x270] [--scale 4] [--frames 120] [--threads 2]

The clips are made of the photos: a window that moves over one photo after another (film: everything changes), and a
page of text in which one word appears after the other (screen: little changes). The pipes are Real-ESRGAN's way: one
ffmpeg decodes to raw RGB, the same network enlarges frame by frame, another ffmpeg encodes, all of them side by side.
Both ways take turns, and medians are reported. Encoder: libx264, crf 18, preset medium.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from bam_plugin.data.images import list_images, read_image
from bam_plugin.upscale import Upscaler
from bam_plugin.upscale.video.pipeline import upscale_video

CRF, PRESET = 18, "medium"


def film(photos: list[np.ndarray], size: tuple[int, int], frames: int) -> Iterator[np.ndarray]:
    """A window of `size` = (H, W) that moves over the photos, 30 frames each, BGR."""
    height, width = size
    for number in range(frames):
        photo = photos[number // 30 % len(photos)]
        room = (max(0, photo.shape[0] - height), max(0, photo.shape[1] - width))
        top, left = (min(limit, 4 * (number % 30)) for limit in room)
        frame = photo[top : top + height, left : left + width]
        yield frame if frame.shape[:2] == size else cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def screen(size: tuple[int, int], frames: int) -> Iterator[np.ndarray]:
    """A page in which a word appears every five frames, BGR."""
    height, width = size
    page = np.full((height, width, 3), 245, np.uint8)
    columns, rows = max(1, width // 60), max(1, (height - 10) // 16)
    for number in range(frames):
        if number % 5 == 0:
            place = number // 5 % (columns * rows)
            where = (6 + 60 * (place % columns), 14 + 16 * (place // columns))
            cv2.putText(page, f"word {place}", where, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (30, 30, 30), 1, cv2.LINE_AA)
        yield page.copy()


def write(path: Path, frames: Iterator[np.ndarray], size: tuple[int, int]) -> Path:
    """An H.264 clip of 30 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "16"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="bgr24")))
        container.mux(stream.encode(None))
    return path


def by_pipes(upscaler: Upscaler, source: Path, target: Path, size: tuple[int, int], scale: int) -> None:
    """Decode, enlarge and encode through two ffmpeg programs and pipes of raw frames."""
    height, width = size
    decode = ["ffmpeg", "-v", "error", "-i", str(source), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    encode = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    encode += ["-s", f"{width * scale}x{height * scale}", "-r", "30", "-i", "pipe:0", "-c:v", "libx264"]
    encode += ["-pix_fmt", "yuv420p", "-crf", str(CRF), "-preset", PRESET, str(target)]
    with (
        subprocess.Popen(decode, stdout=subprocess.PIPE) as first,
        subprocess.Popen(encode, stdin=subprocess.PIPE) as second,
    ):
        assert first.stdout is not None and second.stdin is not None
        while len(content := first.stdout.read(height * width * 3)) == height * width * 3:
            pixels = np.frombuffer(content, np.uint8).reshape(height, width, 3)
            second.stdin.write(upscaler.upscale(pixels, scale=scale).tobytes())
        second.stdin.close()


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Frames a second of clips, end to end.")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["320x180", "480x270"])
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--model")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    photos = [read_image(path) for path in list_images(args.photos)[:8]]
    upscaler = Upscaler(args.model, scale=args.scale, threads=args.threads, precision=args.precision)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for text in args.sizes:
            width, height = (int(number) for number in text.split("x"))
            size = (height, width)
            for kind, frames in (("film", film(photos, size, args.frames)), ("screen", screen(size, args.frames))):
                source = write(folder / f"{kind}_{text}.mp4", frames, size)
                ways: dict[str, Callable[[], object]] = {
                    "bam": lambda source=source: upscale_video(
                        upscaler, source, folder / "ours.mp4", scale=args.scale, crf=CRF, preset=PRESET
                    )
                }
                if shutil.which("ffmpeg"):
                    ways["pipes"] = lambda source=source, size=size: by_pipes(
                        upscaler, source, folder / "piped.mp4", size, args.scale
                    )
                times: dict[str, list[float]] = {way: [] for way in ways}
                computed = 1.0
                for _ in range(args.rounds):
                    for way, call in ways.items():
                        started = time.perf_counter()
                        result = call()
                        times[way].append(time.perf_counter() - started)
                        computed = getattr(result, "computed", computed)
                medians = {way: statistics.median(each) for way, each in times.items()}
                rates = "  ".join(f"{way} {args.frames / median:6.1f} fps" for way, median in medians.items())
                sys.stdout.write(f"{kind:7} {text} x{args.scale}  {rates}  computed {100 * computed:.0f} %\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
