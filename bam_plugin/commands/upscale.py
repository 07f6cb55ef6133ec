"""`bam upscale`: pictures in, larger pictures out; files, folders or patterns.

One bad file does not stop the rest: it is listed at the end and makes the exit code 1. Results appear complete or not
at all, so a run that was stopped can be repeated with --skip-existing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from bam_plugin.files import remove_abandoned
from bam_plugin.packed.precision import FLOAT, PRECISIONS
from bam_plugin.pictures.formats import lossy_formats, written_formats
from bam_plugin.pictures.read import MAX_PIXELS
from bam_plugin.pictures.write import DEFAULT_QUALITY
from bam_plugin.upscale.batch_progress import BatchProgress, explain_failure, list_failures
from bam_plugin.upscale.plan import PlannedPicture, find_inputs, plan_pictures
from bam_plugin.upscale.upscaler import MAX_SCALE, Upscaler, UpscaleResult, target_size

_log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add, lossy = parser.add_argument, " and ".join(lossy_formats())
    add("-i", "--input", nargs="+", required=True, metavar="IN", help="picture files, folders or patterns ('*.jpg')")
    add("-o", "--output", required=True, type=Path, metavar="OUT", help="a folder, or a file name for one picture")
    add("-m", "--model", metavar="MODEL", help="packed file or name of a shipped network (default: the shipped one)")
    add("-s", "--scale", type=_scale, help="magnification; resized from the nearest network's where none fits exactly")
    add("-t", "--tile", type=_tile, default=None, help="edge of a tile in input pixels, 0 for none, auto (default)")
    add("-j", "--threads", type=_positive, help="threads to use (default: all processors)")
    add("--isa", help="instruction set to use (default: the best this processor has)")
    add("--precision", choices=PRECISIONS, default=FLOAT, help="of the float layers, if the file offers it (fp32)")
    add("--ext", choices=["auto", *written_formats()], default="auto", help="format of the results (default: auto)")
    add("--quality", type=_quality, default=DEFAULT_QUALITY, help=f"1 to 100 for {lossy} (default: %(default)s)")
    add("--suffix", default="", help="text put behind each result's name")
    add("--recursive", action="store_true", help="look into the folders of a folder, and keep their tree")
    add("--skip-existing", action="store_true", help="leave out pictures whose result is there")
    add("--max-megapixels", type=_megapixels, default=MAX_PIXELS / 1e6, help="refuse larger inputs (%(default)g)")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--json", action="store_true", help="print one JSON document instead of lines")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print nothing but failures")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print more, tracebacks of failures included")


def run(args: argparse.Namespace) -> int:
    """Upscale what the arguments name; 0 when every picture has its result, 1 when some failed."""
    started = time.perf_counter()
    # Before the network is read: a wrong path is the likeliest mistake.
    sources = find_inputs(args.input, output=args.output, recursive=args.recursive)
    upscaler = Upscaler(args.model, scale=args.scale, isa=args.isa, threads=args.threads, precision=args.precision)
    scale = args.scale or upscaler.scale
    jobs = plan_pictures(
        sources,
        output=args.output,
        scale=scale,
        format=args.ext,
        suffix=args.suffix,
        max_pixels=round(args.max_megapixels * 1e6),
    )
    if args.verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
        _log.info("%s, x%d, %s, %d threads", upscaler.path, upscaler.scale, upscaler.isa, upscaler.threads)
    if not args.dry_run:
        _tidy(jobs, quiet=args.quiet)
    with _terminated_like_interrupted():
        records = _Batch(args=args, upscaler=upscaler, scale=scale, jobs=jobs).run()
    failed = [record for record in records if record["status"] == "failed"]
    if args.json:
        document = {
            "model": {"path": str(upscaler.path), "sha256": upscaler.model.sha256, "scale": upscaler.scale},
            "scale": scale,
            "isa": upscaler.isa,
            "precision": upscaler.precision,
            "threads": upscaler.threads,
            "seconds": round(time.perf_counter() - started, 3),
            "files": records,
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    list_failures([record["error"] for record in failed], files=len(records), stream=sys.stderr)
    return 1 if failed else 0


def _tidy(jobs: list[PlannedPicture], *, quiet: bool) -> None:
    """Remove what killed runs have left unfinished in the folders of the results."""
    for folder in sorted({job.destination.parent for job in jobs if job.destination is not None}):
        for path in remove_abandoned(folder):
            if not quiet:
                sys.stderr.write(f"removed {path}, which a killed run left unfinished\n")


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Within the block SIGTERM acts as Ctrl-C does, so that the unfinished file is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Batch:
    """Runs the jobs one after the other and keeps the books."""

    def __init__(self, *, args: argparse.Namespace, upscaler: Upscaler, scale: float, jobs: list[PlannedPicture]):
        self._args, self._upscaler, self._scale, self._jobs = args, upscaler, scale, jobs
        self._progress = BatchProgress(
            files=len(jobs),
            pixels=sum(_pixels(job) for job in jobs),
            stream=sys.stderr,
            quiet=args.quiet or args.dry_run,
        )

    def run(self) -> list[dict]:
        records = []
        with self._progress:
            for job in self._jobs:
                with self._progress.picture(job.source.name, _pixels(job)):
                    record = self._one(job)
                records.append(record)
                if not (self._args.json or self._args.quiet or record["status"] == "failed"):
                    self._progress.write(_printable(_line(record)), sys.stdout)
        return records

    def _one(self, job: PlannedPicture) -> dict:
        record: dict = {"source": str(job.source), "destination": str(job.destination) if job.destination else None}
        try:
            record.update(self._outcome(job))
        except Exception as error:  # whatever it is, the next picture may be fine
            _log.info("%s", traceback.format_exc())
            record.update(status="failed", error=explain_failure(error, job.source), error_class=type(error).__name__)
        return record

    def _outcome(self, job: PlannedPicture) -> dict:
        if job.error is not None:
            raise job.error
        assert job.destination is not None and job.info is not None  # as in every job without an error
        if self._args.skip_existing and job.destination.exists():
            return {"status": "skipped"}
        if self._args.dry_run:
            height, width = target_size((job.info.height, job.info.width), self._scale)
            return {"status": "planned", "source_size": [job.info.width, job.info.height], "size": [width, height]}
        result = self._upscaler.upscale_file(
            job.source,
            job.destination,
            scale=self._scale,
            tile=self._args.tile,
            quality=self._args.quality,
            max_pixels=round(self._args.max_megapixels * 1e6),
            progress=self._progress.advance,
        )
        return _facts(result)


def _facts(result: UpscaleResult) -> dict:
    return {
        "status": "done",
        "source_size": list(result.source_size),
        "size": list(result.size),
        "tiles": result.tiles,
        "seconds": round(result.seconds, 3),
        "notes": list(result.notes),
    }


def _line(record: dict) -> str:
    if record["status"] == "skipped":
        return f"{record['source']}: {record['destination']} is there, skipped\n"
    sizes = " -> ".join("x".join(map(str, record[key])) for key in ("source_size", "size"))
    line = f"{record['source']} -> {record['destination']}  {sizes}"
    if record["status"] == "planned":
        return f"{line}  (not done: dry run)\n"
    notes = "".join(f"    note: {note}\n" for note in record["notes"])
    return f"{line}  {record['seconds']:.1f} s\n{notes}"


def _printable(text: str) -> str:
    """Text that standard output can take: file names may hold what its encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _pixels(job: PlannedPicture) -> int:
    return job.info.width * job.info.height if job.info else 0


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
    if not value > 0:
        raise argparse.ArgumentTypeError(f"a positive number is expected, found {text}")
    return value
