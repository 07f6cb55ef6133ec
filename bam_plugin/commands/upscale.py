"""`bam upscale`: make pictures or clips larger. Inputs are files, folders or patterns.

One bad file does not stop the rest. It is listed at the end, and the exit code is 1. Results appear complete or not at
all, so a stopped run can be repeated with --skip-existing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bam_plugin.packed.precision import FLOAT, PRECISIONS
from bam_plugin.pictures.formats import lossy_formats, written_formats
from bam_plugin.pictures.read import MAX_PIXELS
from bam_plugin.pictures.write import DEFAULT_QUALITY
from bam_plugin.upscale.batch import DONE, FAILED, PLANNED, SKIPPED, FileResult, UpscaleBatch
from bam_plugin.upscale.batch_progress import BatchProgress, explain_failure, list_failures
from bam_plugin.upscale.tolerant_stream import TolerantStream
from bam_plugin.upscale.upscaler import MAX_SCALE, Upscaler
from bam_plugin.upscale.video.clips import plan_clips, upscale_clips
from bam_plugin.upscale.video.containers import is_clip

_log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add, lossy = parser.add_argument, ", ".join(lossy_formats())
    add("-i", "--input", nargs="+", required=True, metavar="IN", help="picture files, folders or patterns ('*.jpg')")
    add("-o", "--output", type=Path, metavar="OUT", help="folder, or file name for one picture (default: beside IN)")
    add("-m", "--model", metavar="MODEL", help="packed file or name of a shipped network (default: the shipped one)")
    add("-s", "--scale", type=_scale, help="magnification; resized from the nearest network's where none fits exactly")
    add("-t", "--tile", type=_tile, default=None, help="edge of a tile in input pixels, 0 for none, auto (default)")
    add("-j", "--threads", type=_positive, help="threads to use (default: all processors)")
    add("--isa", help="instruction set to use (default: the best this processor has)")
    add("--precision", choices=PRECISIONS, default=FLOAT, help="of the float layers, if the file offers it (fp32)")
    add("--ext", choices=["auto", *written_formats()], default="auto", help="format of the results (default: auto)")
    add("--quality", type=_quality, default=DEFAULT_QUALITY, help=f"1 to 100 for {lossy} (default: %(default)s)")
    add("--suffix", default="", help="text put behind each result's name (without -o: _x4 for a scale of 4)")
    add("--recursive", action="store_true", help="look into the folders of a folder, and keep their tree")
    add("--skip-existing", action="store_true", help="leave out pictures whose result is there")
    add("--max-megapixels", type=_megapixels, default=MAX_PIXELS / 1e6, help="refuse larger inputs (%(default)g)")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--json", action="store_true", help="print one JSON document instead of lines")
    clips = parser.add_argument_group("clips (mp4, mkv, mov, webm, ...)")
    clips.add_argument("--codec", default="libx264", help="FFmpeg's name of the encoder (default: %(default)s)")
    clips.add_argument("--crf", type=int, help="the encoder's constant quality, smaller is better")
    clips.add_argument("--preset", help="the encoder's name of a speed")
    clips.add_argument("--strict", action="store_true", help="stop at a frame that cannot be decoded")
    clips.add_argument("--resume", action="store_true", help="go on where a killed run has stopped")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print nothing but failures")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print more, tracebacks of failures included")


def run(args: argparse.Namespace) -> int:
    """Upscale the inputs. Returns 0 if every picture has its result, 1 if some failed."""
    started = time.perf_counter()
    out, err = TolerantStream(sys.stdout), TolerantStream(sys.stderr)
    if any(is_clip(name) for name in args.input):
        return _run_clips(args, out, err)
    batch = UpscaleBatch(
        args.input,
        args.output,
        model=args.model,
        scale=args.scale,
        tile=args.tile,
        format=args.ext,
        quality=args.quality,
        suffix=args.suffix,
        recursive=args.recursive,
        skip_existing=args.skip_existing,
        dry_run=args.dry_run,
        max_pixels=round(args.max_megapixels * 1e6),
        isa=args.isa,
        threads=args.threads,
        precision=args.precision,
    )
    upscaler = batch.upscaler
    if args.verbose:
        logging.basicConfig(level=logging.INFO, stream=err, format="%(message)s")
        _log.info("%s, x%d, %s, %d threads", upscaler.path, upscaler.scale, upscaler.isa, upscaler.threads)
    for path in batch.remove_abandoned():
        if not args.quiet:
            err.write(f"removed {path}, which a killed run left unfinished\n")
    records, failures = [], []
    progress = BatchProgress(
        files=len(batch.pictures), pixels=batch.pixels, stream=err, quiet=args.quiet or args.dry_run
    )
    with _terminated_like_interrupted(), progress:
        for result in batch.run(progress):
            record = _record(result)
            records.append(record)
            if result.status == FAILED:
                failures.append(record["error"])
            elif not (args.json or args.quiet):
                progress.write(_line(record), out)
    if args.json:
        document = {
            "model": {"path": str(upscaler.path), "sha256": upscaler.model.sha256, "scale": upscaler.scale},
            "scale": batch.scale,
            "isa": upscaler.isa,
            "precision": upscaler.precision,
            "threads": upscaler.threads,
            "seconds": round(time.perf_counter() - started, 3),
            "files": records,
        }
        out.write(json.dumps(document, indent=2) + "\n")
    list_failures(failures, files=len(records), stream=err)
    if out.broken:
        err.write("standard output was closed: the pictures are done, what was to be printed is lost\n")
    return 1 if failures or (args.json and out.broken) else 0


def _run_clips(args: argparse.Namespace, out: TolerantStream, err: TolerantStream) -> int:
    """Upscale clips. Returns 0 if every one has its result, 1 if some failed."""
    upscaler = Upscaler(args.model, scale=args.scale, isa=args.isa, threads=args.threads, precision=args.precision)
    planned = plan_clips(args.input, args.output, scale=args.scale or upscaler.scale, suffix=args.suffix)
    records, failures = [], []
    options = {"scale": args.scale, "codec": args.codec, "crf": args.crf, "preset": args.preset, "tile": args.tile}
    options |= {"strict": args.strict, "resume": args.resume}
    with _terminated_like_interrupted():
        for outcome in upscale_clips(upscaler, planned, stream=err, quiet=args.quiet, **options):
            record = {"source": str(outcome.source), "destination": str(outcome.destination)}
            if outcome.error is not None:
                failures.append(explain_failure(outcome.error, outcome.source))
                record |= {"status": FAILED, "error": failures[-1], "error_class": type(outcome.error).__name__}
            else:
                record |= {"status": DONE, **outcome.result.facts()}
                if not (args.json or args.quiet):
                    out.write(outcome.result.line())
            records.append(record)
    if args.json:
        out.write(
            json.dumps({"scale": upscaler.scale, "precision": upscaler.precision, "clips": records}, indent=2) + "\n"
        )
    list_failures(failures, files=len(records), stream=err)
    return 1 if failures else 0


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Within the block SIGTERM acts like Ctrl-C, so that the unfinished file is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _record(result: FileResult) -> dict:
    """What became of a picture, as the JSON document has it."""
    record: dict = {
        "source": str(result.source),
        "destination": str(result.destination) if result.destination else None,
        "status": result.status,
    }
    if result.error is not None:
        record["error"] = explain_failure(result.error, result.source)
        record["error_class"] = type(result.error).__name__
    if result.source_size and result.size:
        record["source_size"], record["size"] = list(result.source_size), list(result.size)
    if result.status == DONE and result.seconds is not None:
        record |= {"tiles": result.tiles, "seconds": round(result.seconds, 3), "notes": list(result.notes)}
    return record


def _line(record: dict) -> str:
    if record["status"] == SKIPPED:
        return f"{record['source']}: {record['destination']} is there, skipped\n"
    sizes = " -> ".join("x".join(map(str, record[key])) for key in ("source_size", "size"))
    line = f"{record['source']} -> {record['destination']}  {sizes}"
    if record["status"] == PLANNED:
        return f"{line}  (not done: dry run)\n"
    notes = "".join(f"    note: {note}\n" for note in record["notes"])
    return f"{line}  {record['seconds']:.1f} s\n{notes}"


def _scale(text: str) -> float:
    value = float(text)
    if not 0 < value <= MAX_SCALE:
        raise argparse.ArgumentTypeError(f"a number above 0 and at most {MAX_SCALE} is expected, found {text}")
    return value


def _tile(text: str) -> int | None:
    return None if text == "auto" else _whole(text, 0, "0, a number of pixels, or auto")


def _positive(text: str) -> int:
    return _whole(text, 1, "a positive number")


def _quality(text: str) -> int:
    value = _whole(text, 1, "1 to 100")
    if value > 100:
        raise argparse.ArgumentTypeError(f"1 to 100 is expected, found {text}")
    return value


def _whole(text: str, least: int, expected: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{expected} is expected, found {text!r}")
    return int(text)


def _megapixels(text: str) -> float:
    value = float(text)
    # Written so that NaN fails too.
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number is expected, found {text}")
    return value
