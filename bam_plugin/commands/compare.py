r"""`bam compare`: results side by side.

    bam compare photo.jpg                # bicubic beside the network's result, the box where they differ most enlarged
    bam compare photo.jpg --html         # the same two in one HTML page with a divider to drag
    bam compare --hr datasets/Set14/GTmod4 --scale 4 --images comic zebra \
        --method BSRN=results/BSRN_bam_x4/visualization/Set14 --output sheet.png

The last one draws chosen images and methods with PSNR and SSIM under each, as papers print them. Methods are folders of
result images named like the HR images, with or without a suffix (`comic.png`, `comic_BSRN_bam_x4.png`). Bicubic is
always among them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bam_plugin.errors import BamError

if TYPE_CHECKING:
    from bam_plugin.pictures.sheet import Box


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bam compare`."""
    parser.add_argument("input", nargs="*", metavar="IN", help="small pictures, folders or patterns to enlarge")
    parser.add_argument("-m", "--model", metavar="MODEL", help="for IN: packed file or name of a shipped network")
    parser.add_argument("--html", action="store_true", help="for IN: one HTML page with a divider to drag")
    parser.add_argument("--hr", type=Path, help="folder of HR images, such as datasets/Set14/GTmod4")
    parser.add_argument("--scale", type=int, help="2, 3, 4, ... (for IN the network's own by default)")
    parser.add_argument(
        "--method", type=_method, action="append", default=[], metavar="NAME=FOLDER", help="result images; repeatable"
    )
    parser.add_argument(
        "--images", nargs="+", metavar="NAME", help="HR images without suffix (default: the first four)"
    )
    parser.add_argument(
        "--box", type=_box, action="append", default=[], metavar="NAME=TOP,LEFT,HEIGHT,WIDTH",
        help="what to enlarge, in HR pixels (default: where the methods differ most)",
    )  # fmt: skip
    parser.add_argument("--box-size", type=int, default=64, help="side of the boxes that are chosen (default: 64)")
    parser.add_argument("-o", "--output", type=Path, help="default: comparison.png, comparison.html")


def run(args: argparse.Namespace) -> int:
    """Compare what the arguments name; returns the exit code."""
    if bool(args.input) == bool(args.hr):
        raise BamError("expected either pictures to enlarge (bam compare IN ...) or a folder of HR images (--hr).")
    if args.input:
        return _before_after(args)
    if args.html or args.model:
        raise BamError("--html and --model go with pictures to enlarge (bam compare IN ...), not with --hr.")
    return _measured_sheet(args)


def _before_after(args: argparse.Namespace) -> int:
    """Bicubic beside the network's result for each input, as a sheet or as a page."""
    from bam_plugin.upscale.batch_progress import explain_failure, list_failures
    from bam_plugin.upscale.before_after import compare_files

    output = args.output or Path(f"comparison.{'html' if args.html else 'png'}")
    wanted = ".html" if args.html else ".png"
    if output.suffix.lower() != wanted:
        raise BamError(f"expected an --output ending in {wanted}, found {output}.")
    pictures, errors = compare_files(args.input, output, model=args.model, scale=args.scale, box_size=args.box_size)
    if pictures:
        sys.stderr.write(f"wrote {output}\n")
    failures = [explain_failure(error, source) for source, error in errors.items()]
    list_failures(failures, files=len(pictures) + len(errors), stream=sys.stderr)
    return 1 if failures else 0


def _measured_sheet(args: argparse.Namespace) -> int:
    """Draw the sheet and print its values as a table."""
    from bam_plugin.data.measured_sheet import compare_methods
    from bam_plugin.files import atomic_path
    from bam_plugin.pictures.bgr import encode_png
    from bam_plugin.pictures.sheet import draw_sheet

    if args.scale is None:
        raise BamError("--hr needs the --scale of its images.")
    output = args.output or Path("comparison.png")
    compared = compare_methods(
        args.hr,
        dict(args.method),
        scale=args.scale,
        images=args.images,
        boxes=dict(args.box),
        box_size=args.box_size,
    )
    with atomic_path(output) as path:
        path.write_bytes(encode_png(draw_sheet(compared), level=6))
    for image in compared:
        for panel in image.panels[1:]:
            sys.stdout.write(f"{image.name}\t{panel.title}\t{panel.psnr:.2f}\t{panel.ssim:.4f}\n")
    sys.stderr.write(f"wrote {output}\n")
    return 0


def _method(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, found {text!r}")
    return name, Path(folder)


def _box(text: str) -> tuple[str, Box]:
    name, _, numbers = text.partition("=")
    try:
        top, left, height, width = (int(number) for number in numbers.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=TOP,LEFT,HEIGHT,WIDTH, found {text!r}") from None
    return name, (top, left, height, width)
