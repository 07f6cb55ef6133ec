"""`bam options`: list, copy, expand and check option files, and list what a network takes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import textwrap

from bam_plugin.config import OptionsError, check_loaded, dump_options, read_options
from bam_plugin.config.shipped import ShippedFile, copy_shipped, shipped_files
from bam_plugin.train.report import paper_methods, paper_value

# The paper's numbers in the description of a method.
_PRINTED = re.compile(r" \([^)]*\b\d\d\.\d\d\b[^)]*\)")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; without any, the shipped files are listed."""
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--copy", metavar="DIR", help="copy the shipped files to DIR/options")
    action.add_argument("--expand", metavar="FILE", help="print FILE as BasicSR's parser gets it")
    action.add_argument("--check", metavar="FILE", nargs="+", help="report the mistakes in the files")
    action.add_argument("--network", metavar="NAME", help="list the options of a registered network")
    parser.add_argument("--method", help="with --expand and --check: a method of the file")
    parser.add_argument(
        "--force_yml",
        nargs="+",
        default=[],
        metavar="KEY:KEY=VALUE",
        help="with --expand and --check: override options",
    )
    parser.add_argument("--json", action="store_true", help="list as JSON")


def run(args: argparse.Namespace) -> int:
    """List, copy, expand or check."""
    if args.copy is not None:
        for path in copy_shipped(args.copy):
            sys.stdout.write(f"{path}\n")
        return 0
    if args.expand is not None:
        sys.stdout.write(dump_options(read_options(args.expand, method=args.method, force=args.force_yml)))
        return 0
    if args.check is not None:
        return _check(args.check, args.method, args.force_yml)
    if args.network is not None:
        return _list_network(args.network, as_json=args.json)
    files = shipped_files()
    if args.json:
        entries = [
            {
                "name": file.name,
                "path": str(file.path),
                "about": file.about,
                "methods": file.methods,
                "paper_recipe": file.paper_recipe,
            }
            for file in files
        ]
        sys.stdout.write(json.dumps(entries, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(_describe(file) for file in files) + "\n")
    return 0


def _list_network(name: str, *, as_json: bool) -> int:
    """One line per option and its sentence below."""
    from bam_plugin.archs.describing import describe_network

    sections = describe_network(name)
    if as_json:
        entries = {title: [dataclasses.asdict(each) for each in options] for title, options in sections.items()}
        sys.stdout.write(json.dumps(entries, indent=2) + "\n")
        return 0
    for title, options in sections.items():
        indent = "    " if title else ""
        if title:
            sys.stdout.write(f"{title}:\n")
        for each in options:
            kind = f": {each.kind}" if each.kind else ""
            default = f" = {each.default}" if each.default else "    (required)"
            sys.stdout.write(f"{indent}{each.name}{kind}{default}\n")
            if each.sentence:
                text = textwrap.fill(
                    each.sentence, 100, initial_indent=f"{indent}    ", subsequent_indent=f"{indent}    "
                )
                sys.stdout.write(f"{text}\n")
    return 0


def _check(names: list[str], method: str | None, force: list[str]) -> int:
    """Check all files. The exit code is 0 if all are good, else 2."""
    code = 0
    for name in names:
        try:
            loaded = read_options(name, method=method, force=force)
            check_loaded(loaded, is_train="train" in loaded.values)
            sys.stdout.write(f"{name}: good\n")
        except OptionsError as error:
            sys.stderr.write(f"{error}\n")
            code = error.exit_code
    return code


def _describe(file: ShippedFile) -> str:
    """The file and its methods, one line each, with the paper's PSNR if the training recipe is the paper's."""
    place = f"options/{file.name}"
    if not file.methods:
        return f"{place}    {file.about}"
    if not file.is_train:
        return f"{place}    the test of {', '.join(file.methods)}"
    lines = [place if file.paper_recipe else f"{place}    {file.about}"]
    width = max((len(method) for method in file.methods), default=0)
    for method, about in file.methods.items():
        text = f"{about}{_printed(about, file.name)}" if file.paper_recipe else _PRINTED.sub("", about)
        lines.append(f"    --method {method.ljust(width)}  {text}")
    return "\n".join(lines)


def _printed(about: str, name: str) -> str:
    """`: Set5 30.31, Set14 27.46, ...` for a row of the paper's tables 1 to 3, else nothing."""
    method = about.replace(",", " ").split()[0] if about else ""
    scale = int(name.removesuffix(".yml").rpartition("_x")[2])
    # Ablations and Table 5 start with the same names; their few numbers stand in the text itself.
    if method not in paper_methods() or "(" in about:
        return ""
    values = [(each, paper_value(method, scale, each)) for each in ("Set5", "Set14", "B100", "Urban100")]
    found = [
        f"{each} {value.psnr:.2f}" + (" (misprint?)" if value.misprint else "")
        for each, value in values
        if value is not None
    ]
    return f": {', '.join(found)}" if found else ""
