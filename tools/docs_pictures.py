"""Make the pictures of README.md and docs/upscale.md again: `python tools/docs_pictures.py [-m MODEL]`.

The photos are those in scikit-image's wheel (NASA's astronaut, public domain; chelsea and coffee, CC0), shrunk to a
quarter by MATLAB's bicubic. The screenshot needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver
from skimage import data

from bam_plugin.cli import main as bam
from bam_plugin.pictures.imresize import imresize

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> int:
    """Write compare.png and large.png (sheets), and slider.png (a screenshot of the page)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model")
    model = parser.parse_args().model
    chosen = ["-m", model] if model else []
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = []
        for photo in ("astronaut", "chelsea", "coffee"):
            path = folder / f"{photo}.png"
            Image.fromarray(imresize(getattr(data, photo)(), scale=0.25)).save(path)
            photos.append(str(path))
        failed = bam(["compare", *photos, *chosen, "-o", str(IMAGES / "compare.png")])
        failed |= bam(["compare", photos[1], *chosen, "--box-size", "112", "-o", str(IMAGES / "large.png")])
        failed |= bam(["compare", photos[1], *chosen, "--html", "-o", str(folder / "page.html")])
        if not failed:
            _screenshot(folder / "page.html", IMAGES / "slider.png")
    return failed


def _screenshot(page: Path, target: Path) -> None:
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=620,900"):
        options.add_argument(flag)
    # Named, so that selenium does not look for one to download.
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.get(page.as_uri())
        shot = browser.get_screenshot_as_png()
        target.write_bytes(shot)
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("RGB"))
    # The empty rest of the window below the page goes.
    used = np.flatnonzero((pixels != pixels[-1, -1]).any(axis=(1, 2))).max() + 16
    Image.fromarray(pixels[:used]).save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
