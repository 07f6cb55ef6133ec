"""The page in a real browser: pictures go in by file input, progress and the divider work, the zip comes out."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.data_images import picture
from PIL import Image

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from helpers.servers import running  # noqa: E402

from bam_plugin.upscale import Upscaler  # noqa: E402


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("lake.png", "a b&c.png")]
    for seed, path in enumerate(paths):
        Image.fromarray(picture(seed, 60, 80)).save(path)
    return paths


def wait(browser, script: str) -> object:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda each: each.execute_script(f"return {script}"))


def test_pictures_are_enlarged_compared_and_fetched(browser, pictures) -> None:
    from selenium.webdriver import Keys

    with running() as server:
        browser.get(server.address)
        browser.find_element("id", "files").send_keys("\n".join(map(str, pictures)))
        wait(browser, "document.querySelectorAll('li.done').length === 2")
        assert "2 of 2 done" in browser.find_element("id", "summary").text
        first = browser.find_elements("css selector", "#list li")[0]
        assert "320 × 240" in first.text
        first.find_element("css selector", ".view").send_keys(Keys.ENTER)  # by keyboard
        wait(browser, "document.querySelector('.pair .after').naturalWidth === 320")
        slider = first.find_element("css selector", ".pair input")
        slider.send_keys(Keys.HOME)
        pair = first.find_element("css selector", ".pair")
        assert browser.execute_script("return arguments[0].style.getPropertyValue('--split')", pair) == "0%"
        link = first.find_element("css selector", ".download").get_attribute("href")
        result = np.asarray(Image.open(io.BytesIO(httpx.get(link).content)))
        expected = Upscaler("bsrn_light", threads=1).upscale(np.asarray(Image.open(pictures[0])))
        np.testing.assert_array_equal(result, expected)
        jobs = list(server.board.jobs)
        archive = httpx.get(f"{server.address}/v1/archive", params={"job": jobs}).content
        names = set(zipfile.ZipFile(io.BytesIO(archive)).namelist())
        assert names == {"lake_large.png", "a b&c_large.png"}
        browser.find_element("id", "clear").click()
        wait(browser, "document.querySelectorAll('li').length === 0")
        requests = [
            json.loads(entry["message"])["message"]["params"]["request"]["url"]
            for entry in browser.get_log("performance")
            if 'Network.requestWillBeSent"' in entry["message"]
        ]
        assert requests and all(url.startswith((server.address, "blob:")) for url in requests)
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_file_that_is_no_picture_says_so_and_the_others_go_on(browser, pictures, tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with running(token="a secret") as server:
        browser.get(f"{server.address}/?token=a%20secret")
        wait(browser, "document.querySelectorAll('#model option').length > 1")
        browser.find_element("id", "files").send_keys(f"{tmp_path / 'broken.png'}\n{pictures[0]}")
        wait(browser, "document.querySelectorAll('li.done').length === 1")
        wait(browser, "document.querySelectorAll('li.failed').length === 1")
        assert "no picture of a known format" in browser.find_element("css selector", "li.failed").text
