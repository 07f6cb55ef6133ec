r"""`bam compare`: results side by side.

    bam compare photo.jpg                # bicubic beside the network's result, the box where they differ most enlarged
    bam compare photo.jpg --html         # the same two in one HTML page with a divider to drag
    bam compare --hr datasets/Set14/GTmod4 --scale 4 --images comic zebra \
        --method BSRN=results/BSRN_bam_x4/visualization/Set14 --output sheet.png

The last draws chosen images and methods with PSNR and SSIM under each, as papers print them. Methods are folders of
result images named like the HR images, with or without a suffix (`comic.png`, `comic_BSRN_bam_x4.png`). Bicubic is
always among them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bam_plugin.errors import BamError

if TYPE_CHECKING:
    import numpy as np

    from bam_plugin.upscale.sheet import Box, ComparedImage


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
    """Bicubic beside the network's result for each input, as a sheet or as a page.

    One bad picture does not stop the rest: it is listed at the end and makes the exit code 1.
    """
    from bam_plugin.files import atomic_path
    from bam_plugin.pictures.bgr import encode_png
    from bam_plugin.upscale.batch_progress import explain_failure, list_failures
    from bam_plugin.upscale.before_after import before_after_page, before_after_sheet, enlarge_both
    from bam_plugin.upscale.plan import find_inputs
    from bam_plugin.upscale.upscaler import Upscaler

    output = args.output or Path(f"comparison.{'html' if args.html else 'png'}")
    wanted = ".html" if args.html else ".png"
    if output.suffix.lower() != wanted or output.is_dir():
        raise BamError(f"expected an --output ending in {wanted}, found {output}.")
    sources = find_inputs(args.input, output=output)
    if any(os.path.realpath(source.path) == os.path.realpath(output) for source in sources):
        raise BamError(f"{output} is an input; name another --output.")
    upscaler = Upscaler(args.model, scale=args.scale)
    pictures, failures = [], []
    for source in sources:
        try:
            pictures.append(enlarge_both(source.path, upscaler, scale=args.scale))
        except Exception as error:  # whatever it is, the next picture may be fine
            failures.append(explain_failure(error, source.path))
    if pictures:
        with atomic_path(output) as path:
            if args.html:
                path.write_text(before_after_page(pictures), encoding="utf-8")
            else:
                sheet = before_after_sheet(pictures, box_size=args.box_size)
                path.write_bytes(encode_png(sheet[:, :, ::-1], level=6))
        sys.stderr.write(f"wrote {output}\n")
    list_failures(failures, files=len(sources), stream=sys.stderr)
    return 1 if failures else 0


def _measured_sheet(args: argparse.Namespace) -> int:
    """Draw the sheet and print its values as a table."""
    from bam_plugin.data.images import list_images
    from bam_plugin.files import atomic_path
    from bam_plugin.pictures.bgr import encode_png
    from bam_plugin.upscale.sheet import draw_sheet

    if args.scale is None or args.scale < 2 or args.box_size < 8:
        raise BamError(f"expected --scale >= 2 and --box-size >= 8, found {args.scale} and {args.box_size}.")
    targets = {path.stem: path for path in list_images(args.hr)}
    names = args.images or sorted(targets)[:4]
    boxes = dict(args.box)
    unknown = [name for name in (*names, *boxes) if name not in targets]
    if unknown:
        raise BamError(f"no HR image {', '.join(unknown)} in {args.hr}; there are: {', '.join(sorted(targets)[:20])}.")
    comparisons = [
        _compare(
            targets[name],
            args.method,
            scale=args.scale,
            box=boxes.get(name),
            box_size=args.box_size,
            others=[other for other in targets if other != name],
        )
        for name in names
    ]
    output = args.output or Path("comparison.png")
    with atomic_path(output) as path:
        path.write_bytes(encode_png(draw_sheet(comparisons), level=6))
    for comparison in comparisons:
        for panel in comparison.panels[1:]:
            sys.stdout.write(f"{comparison.name}\t{panel.title}\t{panel.psnr:.2f}\t{panel.ssim:.4f}\n")
    sys.stderr.write(f"wrote {output}\n")
    return 0


def _compare(
    target: Path,
    methods: Sequence[tuple[str, Path]],
    *,
    scale: int,
    box: Box | None,
    box_size: int,
    others: Sequence[str],
) -> ComparedImage:
    from bam_plugin.data.images import read_image
    from bam_plugin.data.pairs import downscale
    from bam_plugin.pictures.imresize import imresize, mod_crop
    from bam_plugin.toolbox.compat import require_basicsr
    from bam_plugin.upscale.sheet import ComparedImage, Panel, choose_box

    require_basicsr()
    from bam_plugin.data.metrics import calculate_psnr_y, calculate_ssim_y

    grey_kept = mod_crop(read_image(target, keep_grey=True), scale)
    hr = mod_crop(read_image(target), scale)
    results = {"Bicubic": imresize(downscale(hr, scale), scale=scale)}
    for name, folder in methods:
        results[name] = read_result(folder, target.stem, hr, others=others)
    panels = [
        Panel(name, image, calculate_psnr_y(image, grey_kept, scale), calculate_ssim_y(image, grey_kept, scale))
        for name, image in results.items()
    ]
    box = box or choose_box(hr, list(results.values()), box_size)
    return ComparedImage(target.stem, [Panel("HR", hr), *panels], box)


def read_result(folder: Path, stem: str, hr: np.ndarray, *, others: Sequence[str]) -> np.ndarray:
    """The result for the image `stem` in `folder`, (H, W, 3) BGR, cut to the size of `hr`.

    It is `stem.png` or `stem_SUFFIX.png`. A file that belongs to one of the `others`, the stems of the other HR images,
    is not taken for it. Raises BamError unless there is exactly one and it is large enough.
    """
    from bam_plugin.data.images import list_images, read_image

    longer = [other for other in others if other.startswith(f"{stem}_")]
    found = [
        path
        for path in list_images(folder)
        if _belongs(path.stem, stem) and not any(_belongs(path.stem, other) for other in longer)
    ]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise BamError(f"expected one result {stem}.png or {stem}_SUFFIX.png in {folder}, found {names}.")
    image = read_image(found[0])[: hr.shape[0], : hr.shape[1]]
    if image.shape != hr.shape:
        raise BamError(
            f"{found[0]} is {image.shape[0]}x{image.shape[1]}, expected at least {hr.shape[0]}x{hr.shape[1]} as HR."
        )
    return image


def _belongs(result: str, stem: str) -> bool:
    return result == stem or result.startswith(f"{stem}_")


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
