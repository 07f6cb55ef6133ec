"""`bam profile`: parameters, MACs, operations and packed size of a network, layer by layer and in total."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bam_plugin.config.problems import OptionsError

if TYPE_CHECKING:
    from bam_plugin.conversion.profiling import Profile

# The paper prints these parameters and MACs for x4 and a 1280x720 output.
PAPER = {"VDSR": ("668K", "616.9G"), "SRResNet": ("1547K", "127.9G"), "BSRN": ("1216K", "85G")}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("arch", nargs="?", help="name of a registered network, such as BSRN")
    source.add_argument("-opt", metavar="FILE", help="option file; its network_g is counted")
    source.add_argument(
        "--shipped", nargs="?", const="*", metavar="PATTERN", help="one line for each shipped x4 training, by name"
    )
    parser.add_argument("--method", help="method of the option file")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="options of the network, such as upscale=4 num_feat=64",
    )
    parser.add_argument(
        "--size", type=_size, default=(1280, 720), metavar="WxH", help="output in pixels (default 1280x720)"
    )
    parser.add_argument("--totals", action="store_true", help="leave out the layers")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Count one network, or all shipped ones, and print the table."""
    if args.shipped is not None:
        return _run_shipped(args)
    options = _network_options(args)
    result = _count(options, args.size)
    if args.json:
        document = {**result.as_dict(), "options": options}
        if args.totals:
            del document["layers"]
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        # The paper's numbers belong to the unchanged networks.
        paper = None if args.settings else PAPER.get(result.network)
        sys.stdout.write(format_markdown(result, layers=not args.totals, paper=paper))
    return 0


def _run_shipped(args: argparse.Namespace) -> int:
    from bam_plugin.config import read_options
    from bam_plugin.config.shipped import shipped_files

    files = [file for file in shipped_files() if file.is_train and file.methods and file.name.endswith("_x4.yml")]
    networks: list[dict[str, Any]] = []
    counted = []
    # Several trainings of one network make one line, under the shortest name.
    for file in sorted(files, key=lambda file: len(file.name)):
        for method in file.methods:
            values = read_options(file.path, method=method).values
            if fnmatch.fnmatchcase(values["name"], args.shipped) and values["network_g"] not in networks:
                networks.append(values["network_g"])
                result = _count(values["network_g"], args.size)
                counted.append((values["name"], result, PAPER.get(result.network)))
    if args.json:
        documents = [{"name": name, **result.as_dict()["total"]} for name, result, _ in counted]
        sys.stdout.write(json.dumps(documents, indent=2) + "\n")
        return 0
    head = ("network", "params", "float + bits/32", "MACs", "float", "1-bit", "OPs", "packed bytes", "paper")
    rows = [
        (
            name,
            _engineering(result.total("params")),
            _engineering(result.effective_params),
            _engineering(result.total("macs")),
            _engineering(result.total("float_macs")),
            _engineering(result.total("binary_macs")),
            _engineering(result.ops),
            f"{result.total('packed_bytes'):,}",
            " / ".join(paper) if paper else "",
        )
        for name, result, paper in counted
    ]
    sys.stdout.write("\n".join(_markdown_table(head, rows, numbers_from=1)) + "\n")
    return 0


def format_markdown(result: Profile, *, layers: bool = True, paper: tuple[str, str] | None = None) -> str:
    """The table of layers and the totals as Markdown, beside what the `paper` prints at x4: (parameters, MACs)."""
    (width, height), (in_width, in_height) = result.output_size, result.input_size
    text = [f"## {result.network}, {width}x{height} from {in_width}x{in_height}", ""]
    if layers:
        head = ("layer", "kind", "weight", "float params", "1-bit params", "float MACs", "1-bit MACs", "packed bytes")
        rows = [
            (
                layer.name or "(forward)",
                layer.kind,
                layer.shape,
                f"{layer.float_params:,}",
                f"{layer.bits:,}",
                _engineering(layer.float_macs),
                _engineering(layer.binary_macs),
                f"{layer.packed_bytes:,}",
            )
            for layer in result.layers
        ]
        text += [*_markdown_table(head, rows, numbers_from=3), ""]
    total = result.total
    if result.output_size != (1280, 720) or width != 4 * in_width:
        paper = None
    rows = [
        ("parameters, each counted once", _engineering(total("params")), *_paper_cell(paper, 0)),
        ("of these 1-bit", _engineering(total("binary_params")), *_paper_cell(paper)),
        ("parameters, float + bits/32", _engineering(result.effective_params), *_paper_cell(paper)),
        ("MACs, each counted once", _engineering(total("macs")), *_paper_cell(paper, 1)),
        ("float MACs", _engineering(total("float_macs")), *_paper_cell(paper)),
        ("1-bit MACs", _engineering(total("binary_macs")), *_paper_cell(paper)),
        ("OPs, float MACs + 1-bit MACs/64", _engineering(result.ops), *_paper_cell(paper)),
        ("packed weights", f"{total('packed_bytes'):,} bytes", *_paper_cell(paper)),
    ]
    text += _markdown_table(("total", "this network", *(("paper",) if paper else ())), rows, numbers_from=1)
    text += ["", "MACs: multiplications, and 1 per added bias and per rectified element; normalizations are free."]
    return "\n".join(text) + "\n"


def _network_options(args: argparse.Namespace) -> dict[str, Any]:
    import yaml

    from bam_plugin.config import network_options

    options: dict[str, Any] = {"type": args.arch}
    if args.opt is not None:
        options = dict(network_options(args.opt, method=args.method))
    elif args.method is not None:
        raise OptionsError("--method chooses within an option file; give one with -opt")
    for setting in args.settings:
        name, separator, value = setting.partition("=")
        if not separator:
            raise OptionsError(f"--set takes KEY=VALUE such as upscale=4, found {setting!r}")
        options[name] = yaml.safe_load(value)
    return options


def _count(options: Mapping[str, Any], size: tuple[int, int]) -> Profile:
    """Check the options, build the network with its registered class and count it."""
    from bam_plugin.config.check import check_network
    from bam_plugin.conversion.profiling import profile
    from bam_plugin.toolbox.networks import NetworkError, build_network, input_channels

    problems = list(check_network(options, ("network_g",)))
    if problems:
        lines = [problem.describe({}) for problem in problems]
        message = "\n  ".join(["the network cannot be built:", *lines])
        raise OptionsError(f"{message}\nset options of the network by --set KEY=VALUE ...", problems)
    try:
        network = build_network(options)
    except NetworkError as error:
        raise OptionsError(f"{error}; change its options by --set KEY=VALUE") from error
    channels = input_channels(network, options)
    return profile(network, output_size=size, num_in_ch=channels, name=options["type"])


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        width = height = 0
    if width < 1 or height < 1:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 1280x720, found {text!r}")
    return width, height


def _paper_cell(paper: tuple[str, str] | None, index: int | None = None) -> tuple[str, ...]:
    return () if paper is None else ("" if index is None else paper[index],)


def _engineering(value: float) -> str:
    """1214979 -> 1215.0K, 84810240000 -> 84.81G: the units that papers print."""
    if value >= 1e8:
        return f"{value / 1e9:.2f}G"
    if value >= 1e7:
        return f"{value / 1e6:.1f}M"
    return f"{value / 1e3:.1f}K" if value >= 1e3 else f"{value:g}"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int) -> list[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if column < numbers_from else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if column < numbers_from else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return [line(head), line(rule), *(line(row) for row in rows)]
