"""`bam convert`: a training checkpoint becomes a bit-packed file, after a comparison of the two."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bam_plugin.errors import BamError
from bam_plugin.files import atomic_path
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.mixed_format import MixedModel

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
        default=0.9999,
        help="smallest share that must agree with PyTorch, where it goes on with the packed network's signs: of each "
        "layer's signs, and of 8-bit values, which may differ by 1 (default 0.9999)",
    )
    parser.add_argument("--no-verify", action="store_true", help="skip the comparison with PyTorch")
    parser.add_argument("--dry-run", action="store_true", help="convert and compare, but write no packed file")
    parser.add_argument("--force", action="store_true", help="replace an output file that exists")
    parser.add_argument(
        "--onnx", type=Path, metavar="FILE", help="write the network in float arithmetic as ONNX, too (needs [onnx])"
    )
    parser.add_argument(
        "--require-graph", action="store_true", help="refuse a network that can only run in torch (a mixed file)"
    )
    parser.add_argument("--report", type=Path, help="write the layer table and the comparison as JSON, too")


def _read_image(path: Path, channels: int) -> Any:
    from bam_plugin.pictures.bgr import network_input
    from bam_plugin.pictures.errors import PictureError
    from bam_plugin.pictures.read import read_picture

    if channels not in (1, 3):
        raise ConvertError(f"--images: {path} is not a picture that a network of {channels} channels takes")
    try:
        return network_input(read_picture(path), channels)
    except PictureError as error:
        raise ConvertError(f"--images: {error}") from None


def _read_facts(path: Path) -> dict[str, Any]:
    import yaml

    try:
        facts = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), allow_nan=False))
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


def _comparison_text(what: str, comparison: Any) -> str:
    share = comparison.flipped / max(1, comparison.signs)
    lines = [f"{what} compared with PyTorch on {comparison.images} images"]
    lines += [
        f"  {how}: largest 8-bit difference {found.max_difference}, equal {found.equal_share:.4%}, within 1 "
        f"{found.within_one_share:.4%}"
        for how, found in (("from the same signs, layer by layer", comparison.same_signs), ("alone", comparison.alone))
    ]
    if comparison.signs:
        layer, most = comparison.most_flipped
        where = f", most in {layer} ({most:.2e} of its own)" if layer else ""
        lines[1] += f", flipped signs {comparison.flipped:,} of {comparison.signs:,} ({share:.2e}){where}"
    return "\n".join(lines)


def _comparison_facts(comparison: Any) -> dict[str, Any] | None:
    return None if comparison is None else {"agreement": comparison.agreement, **asdict(comparison)}


def _report(conversion: Any, onnx: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "layers": [vars(row) | {"shape": list(row.shape)} for row in conversion.rows],
        "file_bytes": len(conversion.data),
        "binary_bits": conversion.model.binary_bits,
        "sha256": conversion.model.sha256,
        "no_graph": getattr(conversion.model, "no_graph", None),
        "comparison": _comparison_facts(conversion.comparison),
        "onnx": onnx,
    }


def _checkpoint(args: argparse.Namespace) -> Path:
    given = [path for path in (args.checkpoint, args.input) if path is not None]
    if len(given) != 1:
        raise ConvertError("give one checkpoint: bam convert CHECKPOINT -o NAME_x4.bam.safetensors")
    if args.method and args.options is None:
        raise ConvertError("--method chooses in an option file; give it by -opt")
    return given[0]


def _check_places(args: argparse.Namespace, source: Path) -> None:
    """No output may take the place of an input or of another output, nor, without --force, of any file."""
    inputs = {"the checkpoint": source, "--options": args.options, "--facts": args.facts}
    taken = {path.resolve(): what for what, path in inputs.items() if path is not None}
    taken |= {path.resolve(): "--images" for path in args.images}
    for what, path in {"--output": args.output, "--onnx": args.onnx, "--report": args.report}.items():
        if path is None:
            continue
        other = taken.setdefault(path.resolve(), what)
        if other != what:
            raise ConvertError(f"{what} and {other} both name {path}; give each file a name of its own")
        if path.is_dir():
            raise ConvertError(f"{what} takes a file, {path} is a folder")
        written = what == "--report" or not args.dry_run
        if written and path.exists() and not args.force:
            raise ConvertError(f"{path} exists; choose another name or give --force")


def _agrees(what: str, comparison: Any, least: float) -> bool:
    """Print a comparison; say so when it found less agreement than `least`."""
    if comparison is None:
        return True
    sys.stdout.write(_comparison_text(what, comparison) + "\n")
    if comparison.agreement >= least:
        return True
    sys.stderr.write(
        f"bam: {what} agrees with PyTorch in a share of {comparison.agreement:.6f} of values or of a layer's signs, "
        f"less than --min-agreement {least:g}: nothing written. From the same signs, rounding changes a few of a "
        "million; more is a fault of the conversion: please report it with the layer named above (--report FILE has "
        "all of them)\n"
    )
    return False


def _reach(model: PackedModel | MixedModel) -> str:
    if model.receptive_radius is not None:
        return f"receptive radius {model.receptive_radius}"
    return f"no finite receptive radius ({getattr(model, 'unbounded', '')}), so tiles are blended"


def run(args: argparse.Namespace) -> int:
    """Convert. Returns 1, and writes no packed file, when a comparison finds more difference than allowed."""
    source = _checkpoint(args)
    _check_places(args, source)
    if not 0 <= args.min_agreement <= 1:
        raise ConvertError(f"--min-agreement takes a share from 0 to 1, found {args.min_agreement}")
    from bam_plugin.conversion import converter, onnx_export
    from bam_plugin.conversion.verify import compare_runs, default_images

    if args.onnx:
        for package in ("onnx",) if args.no_verify else ("onnx", "onnxruntime"):
            onnx_export.require(package)  # before the work, not after

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
        require_graph=args.require_graph or args.onnx is not None,
    )
    onnx, onnx_comparison = b"", None
    if args.onnx:
        assert isinstance(conversion.model, PackedModel)  # require_graph
        onnx = onnx_export.export_onnx(conversion.model)
        if not args.no_verify:
            onnx_comparison = compare_runs(
                conversion.network,
                onnx_export.observed_runner(conversion.model),
                images(conversion.model.num_in_ch),
                run_alone=onnx_export.onnx_runner(onnx),
            )
    out = sys.stdout
    out.write(layer_table(conversion.rows) + "\n")
    if isinstance(conversion.model, MixedModel):
        out.write(f"no packed graph: {conversion.model.no_graph}; so this is a mixed file, which runs in torch\n")
    if args.report:
        checked = _comparison_facts(onnx_comparison)
        facts = {"file_bytes": len(onnx), "comparison": checked} if checked else None
        with atomic_path(args.report) as temporary:
            temporary.write_text(json.dumps(_report(conversion, facts), indent=2) + "\n", encoding="utf-8")
    checks = [("the packed network", conversion.comparison), ("the ONNX model", onnx_comparison)]
    if not all([_agrees(what, comparison, args.min_agreement) for what, comparison in checks]):
        return 1
    if args.dry_run:
        return 0
    with atomic_path(args.output) as temporary:
        temporary.write_bytes(conversion.data)
    out.write(
        f"{args.output}: {len(conversion.data):,} bytes (checkpoint {source.stat().st_size:,}), scale "
        f"{conversion.model.scale}, {_reach(conversion.model)}\n"
    )
    if args.onnx:
        with atomic_path(args.onnx) as temporary:
            temporary.write_bytes(onnx)
        out.write(f"{args.onnx}: {len(onnx):,} bytes, height and width free\n")
    return 0
