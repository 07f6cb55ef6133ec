"""Feed broken files to the picture reader and to the packed-file reader for as long as you like.

    python benchmarks/fuzz_readers.py pictures --seconds 600
    python benchmarks/fuzz_readers.py packed --seconds 600 --first-seed 1000000

Cases run in a worker process with limited memory. A case is good when it is read or refused by a named error; another
exception, a crash of the process or a case that hangs is reported with its seed, and the broken file is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402

_MEMORY = 4 << 30
_HANGS_AFTER = 60.0  # seconds without a new case


def main() -> int:
    """Run workers until the time is over; 1 when any case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pictures", "packed"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for files that failed")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return _work(args)
    deadline, seed, failures = time.monotonic() + args.seconds, args.first_seed, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < deadline:
            seed, failed = _watch(args, Path(folder), seed, deadline)
            failures += failed
    print(f"{seed - args.first_seed} cases, {failures} failures")
    return 1 if failures else 0


def _watch(args: argparse.Namespace, folder: Path, seed: int, deadline: float) -> tuple[int, int]:
    """Start a worker at `seed`; return the next seed, and whether the worker ended by a failure."""
    state = folder / "state"
    state.write_text(str(seed))
    command = [sys.executable, __file__, args.what, "--first-seed", str(seed), "--worker", str(folder)]
    command += ["--seconds", str(max(1.0, deadline - time.monotonic()))]
    worker = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while True:
        try:
            _, errors = worker.communicate(timeout=_HANGS_AFTER)
            break
        except subprocess.TimeoutExpired:
            if time.time() - state.stat().st_mtime > _HANGS_AFTER:
                worker.kill()
    last = int(state.read_text())
    if worker.returncode == 0:
        return last + 1, 0
    args.keep.mkdir(exist_ok=True)
    kept = args.keep / f"{args.what}_{last}"
    if (folder / "case").exists():
        kept.write_bytes((folder / "case").read_bytes())
    print(f"seed {last}: exit {worker.returncode}, kept as {kept}\n{errors[-2000:]}")
    return last + 1, 1


def _work(args: argparse.Namespace) -> int:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.environ["OMP_NUM_THREADS"] = "1"
    case = {"pictures": _picture_case, "packed": _packed_case}[args.what]()
    deadline, seed = time.monotonic() + args.seconds, args.first_seed
    while time.monotonic() < deadline:
        (args.worker / "state").write_text(str(seed))
        try:
            case(seed, args.worker / "case")
        except Exception:
            traceback.print_exc()
            return 1
        seed += 1
    return 0


def _picture_case():
    from helpers.fuzzing import mutate, picture_seeds

    from bam_plugin.pictures.animation import read_animation
    from bam_plugin.pictures.errors import PictureError
    from bam_plugin.pictures.read import probe_picture, read_picture

    seeds = list(picture_seeds().values())

    def case(seed: int, path: Path) -> None:
        path.write_bytes(mutate(seeds[seed % len(seeds)], np.random.default_rng(seed)))
        for read in (probe_picture, read_picture):
            with contextlib.suppress(PictureError):
                read(path, max_pixels=20_000_000)
        with contextlib.suppress(PictureError):
            if animation := read_animation(path, max_pixels=2_000_000):
                list(animation.frames())

    return case


def _packed_case():
    from helpers.fuzzing import edited_models, mutate
    from helpers.upscale_models import tiny_model

    from bam_plugin.engine import Engine
    from bam_plugin.errors import BamError
    from bam_plugin.packed import PackedFormatError
    from bam_plugin.packed.format import pack_model, unpack_model

    model = tiny_model()
    whole = pack_model(model)
    image = np.full((3, 4, 3), 0.5, np.float32)

    def case(seed: int, path: Path) -> None:
        generator = np.random.default_rng(seed)
        data = mutate(whole, generator) if seed % 2 else next(edited_models(model, generator))
        path.write_bytes(data)
        try:
            engine = Engine(unpack_model(data), threads=1)
        except PackedFormatError:
            return
        with contextlib.suppress(BamError):
            engine.run(image)

    return case


if __name__ == "__main__":
    sys.exit(main())
