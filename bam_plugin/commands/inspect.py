"""`bam inspect`: show a packed file. To read it verifies its checksum and its graph."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bam_plugin.packed.describe import describe, printable
from bam_plugin.packed.format import read_model
from bam_plugin.packed.zoo import find_model


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", help="packed file or a network of the zoo, such as bsrn_light_x4")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the facts of one packed file, whose checksum has been verified by reading it."""
    path = find_model(args.file)
    model = read_model(path)
    facts = {"file": str(path), "checksum": "verified", **describe(model, file_bytes=path.stat().st_size)}
    if args.json:
        sys.stdout.write(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    else:
        sys.stdout.write(f"{_layer_table(facts['layers'])}\n\n{_summary(facts)}\n")
    return 0


def _layer_table(layers: list[dict[str, Any]]) -> str:
    rows = [("layer", "kind", "size", "weights", "bits each", "bytes")]
    for layer in layers:
        size = f"{layer['kernel']}x{layer['kernel']} {layer['channels'][0]} -> {layer['channels'][1]}"
        numbers = (f"{layer['weights']:,}", str(layer["bits_per_weight"]), f"{layer['bytes']:,}")
        rows.append((printable(layer["name"]), layer["kind"], size, *numbers))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    # Text is aligned left, numbers are aligned right.
    aligned = (
        [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def _summary(facts: dict[str, Any]) -> str:
    binary, floats, sizes = facts["binary"], facts["float"], facts["bytes"]
    radius = facts["receptive_radius"]
    lines = {
        "file": f"{facts['file']}, {sizes['file']:,} bytes",
        "network": facts["network"] or "not recorded",
        "scale": f"x{facts['scale']}, {facts['channels'][0]} channels in, {facts['channels'][1]} out",
        "receptive radius": f"{radius} input pixels" if radius is not None else _unbounded(facts),
        "binary weights": f"{binary['weights']:,} in {binary['bytes']:,} bytes",
        "float numbers": f"{floats['numbers']:,} in {floats['bytes']:,} bytes",
        "other operations": _operations(facts),
        "precisions": "; ".join(_precision(name, offer) for name, offer in facts["precisions"].items()),
        **_mixed_lines(facts),
        "metrics": _flat(facts["metrics"]) or "not recorded",
        **{name.replace("_", " "): _flat(value) for name, value in facts["origin"].items()},
        "sha256": f"{facts['sha256']} (verified)",
    }
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{printable(value)}" for name, value in lines.items())


def _precision(name: str, offer: dict[str, Any] | None) -> str:
    """A precision with its cost: "int8 (Set5 +0.001 dB)"."""
    costs = ", ".join(f"{benchmark} {cost:+.3f} dB" for benchmark, cost in offer["cost_db"].items()) if offer else ""
    return f"{name} (costs {costs})" if costs else name


def _operations(facts: dict[str, Any]) -> str:
    if facts["kind"] == "mixed":
        return f"in PyTorch; no packed graph: {facts['no_graph']}"
    return ", ".join(f"{count} {name}" for name, count in facts["operations"].items() if not name.endswith("conv2d"))


def _unbounded(facts: dict[str, Any]) -> str:
    return f"none: {facts['unbounded']}; tiles are blended, and differ from an untiled result"


def _mixed_lines(facts: dict[str, Any]) -> dict[str, str]:
    """The lines of a mixed network: the sizes that it takes, if it does not take all."""
    if facts["kind"] != "mixed" or (facts["size_multiple"], facts["least_size"]) == (1, 1):
        return {}
    return {"sizes": f"multiples of {facts['size_multiple']} from {facts['least_size']} on; others are padded and cut"}


def _flat(value: object) -> str:
    """Nested plain values on one line: "set5: psnr 30.1, ssim 0.86; set14: ..."."""
    if isinstance(value, dict):
        nested = any(isinstance(item, (dict, list)) for item in value.values())
        return ("; " if nested else ", ").join(
            f"{name}: {_flat(item)}" if isinstance(item, (dict, list)) else f"{name} {_flat(item)}"
            for name, item in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(_flat, value))
    return "" if value is None else str(value)
