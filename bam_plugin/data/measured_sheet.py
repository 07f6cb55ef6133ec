"""A sheet as papers print it: images of a set, each with the results of several methods, their PSNR and SSIM.

Methods are folders of result images that are named like the HR images, with or without a suffix (`comic.png`,
`comic_BSRN_bam_x4.png`). Bicubic is always among them. The measures are those of `bam test`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bam_plugin.data.images import list_images, read_image
from bam_plugin.data.pairs import downscale
from bam_plugin.errors import BamError
from bam_plugin.pictures.imresize import imresize, mod_crop
from bam_plugin.pictures.measures import psnr_y, ssim_y
from bam_plugin.pictures.sheet import Box, ComparedImage, Panel, choose_box


def compare_methods(
    hr: Path,
    methods: Mapping[str, Path],
    *,
    scale: int,
    images: Sequence[str] | None = None,
    boxes: Mapping[str, Box] | None = None,
    box_size: int = 64,
) -> list[ComparedImage]:
    """Measure bicubic and the results of `methods` (name -> folder) against the HR images of a folder.

    Args:
        hr: folder of HR images, such as datasets/Set14/GTmod4.
        methods: name -> folder of result images.
        scale: whole number of at least 2; images are cut to multiples of it, and so many pixels from each border.
        images: stems of the HR images to compare; the first four by default.
        boxes: stem -> what `draw_sheet` enlarges, in HR pixels; by default where the methods differ most.
        box_size: side of the boxes that are chosen, at least 8.

    Each image's panels are HR first, then Bicubic, then the methods. Raises BamError for what is not there or has
    another size.
    """
    boxes = boxes or {}
    if scale < 2 or box_size < 8:
        raise BamError(f"expected a scale of at least 2 and a box size of at least 8, found {scale} and {box_size}.")
    targets = {path.stem: path for path in list_images(hr)}
    names = images or sorted(targets)[:4]
    unknown = [name for name in (*names, *boxes) if name not in targets]
    if unknown:
        raise BamError(f"no HR image {', '.join(unknown)} in {hr}; there are: {', '.join(sorted(targets)[:20])}.")
    compared = []
    for name in names:
        others = [other for other in targets if other != name]
        target = mod_crop(read_image(targets[name]), scale)
        results = {"Bicubic": imresize(downscale(target, scale), scale=scale)}
        results |= {method: find_result(folder, name, target, others=others) for method, folder in methods.items()}
        box = boxes.get(name) or choose_box(target, list(results.values()), box_size)
        compared.append(ComparedImage(name, _measured(targets[name], target, results, scale), box))
    return compared


def find_result(folder: Path, stem: str, hr: np.ndarray, *, others: Sequence[str]) -> np.ndarray:
    """The result for the image `stem` in `folder`, (H, W, 3) BGR, cut to the size of `hr`.

    It is `stem.png` or `stem_SUFFIX.png`. A file that belongs to one of the `others`, the stems of the other HR images,
    is not taken for it. Raises BamError unless there is exactly one and it is large enough.
    """
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


def _measured(path: Path, target: np.ndarray, results: Mapping[str, np.ndarray], scale: int) -> list[Panel]:
    # A grey image is measured as grey.
    measured = mod_crop(read_image(path, keep_grey=True), scale)
    return [
        Panel("HR", target),
        *(
            Panel(name, image, psnr_y(image, measured, scale), ssim_y(image, measured, scale))
            for name, image in results.items()
        ),
    ]


def _belongs(result: str, stem: str) -> bool:
    return result == stem or result.startswith(f"{stem}_")
