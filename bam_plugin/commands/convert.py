"""`bam convert`: convert a training checkpoint to a bit-packed file, after a comparison of the two."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_plugin.errors import ArgumentsError
from bam_plugin.files import atomic_path
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.mixed_format import MixedModel

if TYPE_CHECKING:
    from bam_plugin.conversion.delivery import Delivery


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


def _read_facts(path: Path) -> dict[str, Any]:
    import yaml

    try:
        facts = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), allow_nan=False))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
        raise ArgumentsError(f"--facts: {path} is not YAML of plain values ({error})") from None
    if not isinstance(facts, dict):
        raise ArgumentsError(f"--facts: {path} must hold named values at its top level")
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


def _report(delivery: Delivery) -> dict[str, Any]:
    conversion = delivery.conversion
    onnx = _comparison_facts(delivery.onnx_comparison)
    return {
        "layers": [vars(row) | {"shape": list(row.shape)} for row in conversion.rows],
        "file_bytes": len(conversion.data),
        "binary_bits": conversion.model.binary_bits,
        "sha256": conversion.model.sha256,
        "no_graph": getattr(conversion.model, "no_graph", None),
        "comparison": _comparison_facts(conversion.comparison),
        "onnx": {"file_bytes": len(delivery.onnx), "comparison": onnx} if onnx else None,
    }


def _checkpoint(args: argparse.Namespace) -> Path:
    given = [path for path in (args.checkpoint, args.input) if path is not None]
    if len(given) != 1:
        raise ArgumentsError("give one checkpoint: bam convert CHECKPOINT -o NAME_x4.bam.safetensors")
    if args.method and args.options is None:
        raise ArgumentsError("--method chooses in an option file; give it by -opt")
    return given[0]


def _check_places(args: argparse.Namespace, source: Path) -> None:
    """No output may replace an input or another output. A report may replace a file only with --force."""
    inputs = {"the checkpoint": source, "--options": args.options, "--facts": args.facts}
    taken = {path.resolve(): what for what, path in inputs.items() if path is not None}
    taken |= {path.resolve(): "--images" for path in args.images}
    for what, path in {"--output": args.output, "--onnx": args.onnx, "--report": args.report}.items():
        if path is None:
            continue
        other = taken.setdefault(path.resolve(), what)
        if other != what:
            raise ArgumentsError(f"{what} and {other} both name {path}; give each file a name of its own")
        if path.is_dir():
            raise ArgumentsError(f"{what} takes a file, {path} is a folder")
        if what == "--report" and path.exists() and not args.force:
            raise ArgumentsError(f"{path} exists; choose another name or give --force")


def _reach(model: PackedModel | MixedModel) -> str:
    if model.receptive_radius is not None:
        return f"receptive radius {model.receptive_radius}"
    return f"no finite receptive radius ({getattr(model, 'unbounded', '')}), so tiles are blended"


def run(args: argparse.Namespace) -> int:
    """Convert and print the results. If a comparison fails, only a report is written."""
    source = _checkpoint(args)
    _check_places(args, source)
    from bam_plugin.conversion.delivery import DisagreementError, convert

    refusal = None
    try:
        delivery = convert(
            source,
            args.output,
            options=args.options,
            method=args.method,
            param_key=args.param_key,
            facts=_read_facts(args.facts) if args.facts else None,
            images=args.images,
            verify=not args.no_verify,
            min_agreement=args.min_agreement,
            onnx=args.onnx,
            require_graph=args.require_graph,
            overwrite=args.force,
            write=not args.dry_run,
        )
    except DisagreementError as error:
        delivery, refusal = error.delivery, error
    model, out = delivery.conversion.model, sys.stdout
    out.write(layer_table(delivery.conversion.rows) + "\n")
    if isinstance(model, MixedModel):
        out.write(f"no packed graph: {model.no_graph}; so this is a mixed file, which runs in torch\n")
    if args.report:
        with atomic_path(args.report) as temporary:
            temporary.write_text(json.dumps(_report(delivery), indent=2) + "\n", encoding="utf-8")
    for what, comparison in delivery.comparisons.items():
        out.write(_comparison_text(what, comparison) + "\n")
    if refusal is not None:
        raise refusal
    if not args.dry_run:
        sizes = f"{len(delivery.conversion.data):,} bytes (checkpoint {source.stat().st_size:,})"
        out.write(f"{args.output}: {sizes}, scale {model.scale}, {_reach(model)}\n")
        if args.onnx:
            out.write(f"{args.onnx}: {len(delivery.onnx):,} bytes, height and width free\n")
    return 0
