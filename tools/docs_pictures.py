"""Make the pictures of README.md, docs/upscale.md and docs/serve.md again: `python tools/docs_pictures.py [-m MODEL]`.

The photos are those in scikit-image's wheel (NASA's astronaut, public domain; chelsea and coffee, CC0), shrunk to a
quarter by MATLAB's bicubic. The screenshot needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.support.ui import WebDriverWait
from skimage import data

from bam_plugin.cli import main as bam
from bam_plugin.pictures.imresize import imresize

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> int:
    """Write compare.png and large.png (sheets), slider.png and serve.png (screenshots of the pages)."""
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
            with _browser(620, 900) as browser:
                browser.get((folder / "page.html").as_uri())
                _screenshot(browser, IMAGES / "slider.png")
            _show_server(photos, IMAGES / "serve.png")
    return failed


@contextlib.contextmanager
def _browser(width: int, height: int) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}"):
        options.add_argument(flag)
    # Named, so that selenium does not look for one to download.
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        yield browser


def _show_server(photos: list[str], target: Path) -> None:
    """`bam serve` with the photos done and the second one compared."""
    server = subprocess.Popen([sys.executable, "-m", "bam_plugin.cli", "serve", "--port", "8017"])
    try:
        with _browser(900, 1000) as browser:
            wait = WebDriverWait(browser, 60, ignored_exceptions=[WebDriverException])
            wait.until(lambda each: each.get("http://127.0.0.1:8017") or each.find_elements("id", "files"))
            browser.find_element("id", "files").send_keys("\n".join(photos))
            wait.until(lambda each: len(each.find_elements("css selector", "li.done")) == len(photos))
            browser.find_elements("css selector", ".view")[1].click()
            wait.until(lambda each: each.execute_script("return document.querySelector('.pair .after').naturalWidth"))
            time.sleep(1)  # until the pair is drawn
            _screenshot(browser, target)
    finally:
        server.terminate()
        server.wait()


def _screenshot(browser: webdriver.Chrome, target: Path) -> None:
    target.write_bytes(browser.get_screenshot_as_png())
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("RGB"))
    # The empty rest of the window below the page goes.
    used = np.flatnonzero((pixels != pixels[-1, -1]).any(axis=(1, 2))).max() + 16
    Image.fromarray(pixels[:used]).save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
