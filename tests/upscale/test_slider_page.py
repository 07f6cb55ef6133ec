"""The before/after page: whole in one file, and its divider really moves, in a real browser where one is installed."""

from __future__ import annotations

import http.server
import re
import threading

import numpy as np
import pytest
from PIL import Image

from bam_plugin.upscale.slider_page import Slider, slider_page

RED, BLUE = (220, 30, 30), (30, 30, 220)


def _sliders() -> list[Slider]:
    red = np.full((240, 320, 3), RED, np.uint8)
    blue = np.full((240, 320, 3), BLUE, np.uint8)
    return [Slider('<b>ü & "x"</b>', red, blue), Slider("second", red, blue, after_name="BSRN")]


def test_the_page_is_one_file_that_loads_nothing():
    page = slider_page(_sliders(), title="Before & after")
    assert "&lt;b&gt;ü &amp; &quot;x&quot;&lt;/b&gt;" in page and "<b>" not in page
    assert "<title>Before &amp; after</title>" in page
    # Every address in the page is a picture inside it.
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page) + re.findall(r"url\(([^)]*)", page)
    assert len(addresses) == 4 and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "http://" not in page and "https://" not in page and "default-src 'none'" in page


def test_pictures_of_two_sizes_are_refused():
    small = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        slider_page([Slider("a", small, np.zeros((4, 5, 3), np.uint8))], title="x")


@pytest.fixture
def opened(browser, tmp_path):
    (tmp_path / "page.html").write_text(slider_page(_sliders(), title="Test"), encoding="utf-8")
    browser.get((tmp_path / "page.html").as_uri())
    return browser


def _shares(browser, tmp_path) -> float:
    """Share of the first picture's middle row that shows the `after` picture."""
    pair = browser.find_element("css selector", ".pair")
    path = tmp_path / "shot.png"
    assert pair.screenshot(str(path))
    with Image.open(path) as image:
        row = np.asarray(image.convert("RGB"))[image.height // 5].astype(int)
    red = np.abs(row - RED).sum(axis=1) < 60
    blue = np.abs(row - BLUE).sum(axis=1) < 60
    assert (red | blue).mean() > 0.97
    # All of `before` lies left of all of `after`.
    assert not red.any() or not blue.any() or np.flatnonzero(red).max() < np.flatnonzero(blue).min()
    return float(blue.mean())


def test_the_divider_is_dragged_and_moved_by_keys(opened, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    assert _shares(opened, tmp_path) == pytest.approx(0.5, abs=0.03)
    pair = opened.find_element("css selector", ".pair")
    width = pair.size["width"]
    ActionChains(opened).move_to_element(pair).click_and_hold().move_by_offset(
        round(width * 0.3), 5
    ).release().perform()
    assert _shares(opened, tmp_path) == pytest.approx(0.2, abs=0.04)
    slider = opened.find_element("css selector", ".pair input")
    slider.send_keys(Keys.HOME)
    assert _shares(opened, tmp_path) > 0.98
    slider.send_keys(Keys.END)
    assert _shares(opened, tmp_path) < 0.02
    # The second picture has a divider of its own, which has not moved.
    second = opened.find_elements("css selector", ".pair")[1]
    assert opened.execute_script("return arguments[0].style.getPropertyValue('--split')", second) == "50%"


def test_zoom_shows_pixels(opened):
    from selenium.webdriver.support.ui import Select

    Select(opened.find_element("id", "zoom")).select_by_visible_text("400 %")
    pair = opened.find_element("css selector", ".pair")
    assert pair.size["width"] == 4 * 320
    assert pair.find_element("css selector", "img").value_of_css_property("image-rendering") == "pixelated"


def test_the_browser_reports_no_error_and_no_request(opened):
    import json

    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in opened.get_log("performance")
        if 'Network.requestWillBeSent"' in entry["message"]
    ]
    assert all(url.startswith(("file:", "data:")) for url in requests)


def test_the_policy_of_the_page_forbids_connections(opened, tmp_path):
    # Even a script in the page cannot reach a server that is there; without the policy it could.
    hits: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    fetch = "fetch(arguments[0], {mode: 'no-cors'}).then(() => done('sent'), () => done('blocked'));"
    (tmp_path / "control.html").write_text("<!DOCTYPE html><title>no policy</title>")
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        outcome = opened.execute_async_script(f"const done = arguments[1]; {fetch}", f"{address}/page")
        opened.get((tmp_path / "control.html").as_uri())
        control = opened.execute_async_script(f"const done = arguments[1]; {fetch}", f"{address}/control")
        server.shutdown()
    assert (outcome, control, hits) == ("blocked", "sent", ["/control"])
