"""`bam convert`: a training checkpoint becomes a bit-packed file, after a comparison of the two."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from bam_plugin._files import atomic_path
from bam_plugin.errors import BamError

_log = logging.getLogger(__name__)


class ConvertError(BamError):
    """The arguments of `bam convert` cannot be served."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("checkpoint", nargs="?", type=Path, help="checkpoint, such as net_g_latest.pth")
    parser.add_argument("-i", "--input", type=Path, help="the checkpoint, given by name")
    parser.add_argument(
        "-opt",
        "--options",
        type=Path,
        help="option file of the training, best the copy in its folder experiments/NAME, which has the method it used "
        "(default: what the checkpoint records)",
    )
    parser.add_argument("--method", metavar="NAME", help="method of an option file that offers several")
    parser.add_argument("-o", "--output", required=True, type=Path, help="packed file, such as NAME_x4.bam.safetensors")
    parser.add_argument("--param-key", help="weights to take (default: params_ema, else params)")
    parser.add_argument("--facts", type=Path, help="YAML file to record inside: training, terms, metrics, ...")
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="compare on these pictures, too")
    parser.add_argument(
        "--min-agreement",
        type=float,
        default=0.999,
        help="smallest share of 8-bit values that may differ from PyTorch by at most 1 (default 0.999)",
    )
    parser.add_argument("--no-verify", action="store_true", help="skip the comparison with PyTorch")
    parser.add_argument("--dry-run", action="store_true", help="convert and compare, but write no packed file")
    parser.add_argument("--force", action="store_true", help="replace an output file that exists")
    parser.add_argument("--report", type=Path, help="write the layer table and the comparison as JSON, too")


def _read_image(path: Path, channels: int) -> Any:
    import numpy as np

    from bam_plugin.packed.verify import decode_picture

    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise ConvertError(f"--images: cannot read {path} ({error})") from None
    image = decode_picture(content, channels) if channels in (1, 3) else None
    if image is None:
        raise ConvertError(f"--images: {path} is not a picture that a network of {channels} channels takes")
    return image


def _read_facts(path: Path) -> dict[str, Any]:
    import yaml

    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(facts, allow_nan=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
        raise ConvertError(f"--facts: {path} is not YAML of plain values ({error})") from None
    if not isinstance(facts, dict):
        raise ConvertError(f"--facts: {path} must hold named values at its top level")
    return facts


def layer_table(rows: list[Any]) -> str:
    """The report rows as aligned text with a line of totals."""
    lines = [("layer", "kind", "shape", "bits before", "bytes after", "packed")]
    lines += [
        (r.layer, r.kind, "x".join(map(str, r.shape)), f"{r.bits_before:,}", f"{r.bytes_after:,}", r.note) for r in rows
    ]
    before, after = sum(r.bits_before for r in rows), sum(r.bytes_after for r in rows)
    lines.append(("total", "", "", f"{before:,}", f"{after:,}", f"{before / 8 / max(1, after):.1f} times smaller"))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(
            (cell.rjust if column in (3, 4) else cell.ljust)(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        + f"  {line[5]}"
        for line in lines
    )


def _comparison_text(comparison: Any) -> str:
    share = comparison.flipped / max(1, comparison.signs)
    worst = max(comparison.flips.items(), key=lambda item: item[1][0], default=None)
    text = (
        f"compared with PyTorch on {comparison.images} images: largest 8-bit difference {comparison.max_difference}, "
        f"equal {comparison.equal_share:.4%}, within 1 {comparison.within_one_share:.4%}, "
        f"flipped signs {comparison.flipped:,} of {comparison.signs:,} ({share:.2e})"
    )
    return text + (f", most in {worst[0]} ({worst[1][0]:,})" if worst and worst[1][0] else "")


def _report(conversion: Any) -> dict[str, Any]:
    comparison = conversion.comparison
    return {
        "layers": [vars(row) | {"shape": list(row.shape)} for row in conversion.rows],
        "file_bytes": len(conversion.data),
        "binary_bits": conversion.model.binary_bits,
        "sha256": conversion.model.sha256,
        "comparison": None if comparison is None else vars(comparison),
    }


def _checkpoint(args: argparse.Namespace) -> Path:
    given = [path for path in (args.checkpoint, args.input) if path is not None]
    if len(given) != 1:
        raise ConvertError("give one checkpoint: bam convert CHECKPOINT -o NAME_x4.bam.safetensors")
    if args.method and args.options is None:
        raise ConvertError("--method chooses in an option file; give it by -opt")
    return given[0]


def run(args: argparse.Namespace) -> int:
    """Convert. Returns 1, and writes no packed file, when the comparison finds more difference than allowed."""
    source = _checkpoint(args)
    if args.output.exists() and not (args.force or args.dry_run):
        raise ConvertError(f"{args.output} exists; choose another name or give --force")
    from bam_plugin.packed import converter
    from bam_plugin.packed.verify import default_images

    def images(channels: int) -> list[Any]:
        return default_images(channels) + [_read_image(path, channels) for path in args.images]

    conversion = converter.convert_checkpoint(
        source,
        args.options,
        method=args.method,
        param_key=args.param_key,
        facts=_read_facts(args.facts) if args.facts else None,
        images=images,
        verify=not args.no_verify,
    )
    out = sys.stdout
    out.write(layer_table(conversion.rows) + "\n")
    if args.report:
        with atomic_path(args.report) as temporary:
            temporary.write_text(json.dumps(_report(conversion), indent=2) + "\n", encoding="utf-8")
    if conversion.comparison is not None:
        out.write(_comparison_text(conversion.comparison) + "\n")
        if conversion.comparison.within_one_share < args.min_agreement:
            sys.stderr.write(
                f"bam: the packed network agrees with PyTorch in {conversion.comparison.within_one_share:.4%} of the "
                f"values, less than --min-agreement {args.min_agreement:.4%}: nothing written\n"
            )
            return 1
    if not args.dry_run:
        with atomic_path(args.output) as temporary:
            temporary.write_bytes(conversion.data)
        checkpoint = source.stat().st_size
        out.write(
            f"{args.output}: {len(conversion.data):,} bytes (checkpoint {checkpoint:,}), scale "
            f"{conversion.model.scale}, receptive radius {conversion.model.receptive_radius}\n"
        )
    return 0
