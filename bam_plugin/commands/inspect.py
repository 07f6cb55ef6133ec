"""`bam inspect`: what a packed file holds. Reading it verifies its checksum and its graph."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from bam_plugin.packed.format import PackedModel, read_packed


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", type=Path, help="packed file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def describe(model: PackedModel, *, file_bytes: int) -> dict[str, object]:
    """The facts of a packed network as plain values."""
    return {
        "scale": model.scale,
        "channels": [model.num_in_ch, model.graph.num_out_ch],
        "receptive_radius": model.receptive_radius,
        "file_bytes": file_bytes,
        "binary_weights": model.binary_bits,
        "float_numbers": sum(array.size for array in model.tensors.values() if array.dtype != "uint8"),
        "ops": dict(sorted(Counter(node.op for node in model.graph.nodes).items())),
        "sha256": model.sha256,
        "info": dict(model.metadata),
    }


def run(args: argparse.Namespace) -> int:
    """Print the facts of one packed file."""
    facts = describe(read_packed(args.file), file_bytes=args.file.stat().st_size)
    if args.json:
        sys.stdout.write(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    else:
        for name, value in facts.items():
            sys.stdout.write(f"{name:18}{json.dumps(value) if isinstance(value, dict) else value}\n")
        sys.stdout.write("checksum verified\n")
    return 0
