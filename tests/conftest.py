"""Fixtures shared by all tests: seeds, the optional folder of real images, and a tiny data set in real LMDBs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_images import textured_picture

SCALE = 4


@dataclass(frozen=True)
class TinyPairs:
    """Image pairs of scale 4: HR 64x64 and LR 16x16 PNGs, as folders and as LMDBs with meta_info.txt."""

    names: tuple[str, ...]
    gt_folder: Path
    lq_folder: Path
    gt_lmdb: Path
    lq_lmdb: Path
    scale: int = SCALE


def pytest_configure() -> None:
    # Several test processes share a machine; results on one thread are also the reproducible ones.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same random states, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    try:
        import torch
    except ModuleNotFoundError:
        return
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with Set5, Set14, ... (`bam_plugin.data.image_sets`); skips the test where there is none."""
    from bam_plugin.data.image_sets import VARIABLE, find_image_sets

    root = find_image_sets()
    if root is None:
        pytest.skip(f"needs the image sets (Set5, ...): set {VARIABLE} or put them into datasets/")
    return root


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> TinyPairs:
    """Eight smooth, coloured, deterministic image pairs; do not write into their folders."""
    import cv2

    root = tmp_path_factory.mktemp("tiny_pairs")
    names = tuple(f"image{index:02d}" for index in range(8))
    generator = np.random.default_rng(7)
    images: dict[str, dict[str, np.ndarray]] = {"gt": {}, "lq": {}}
    for name in names:
        images["gt"][name] = textured_picture(generator, 64)
        images["lq"][name] = cv2.resize(images["gt"][name], None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    for side, members in images.items():
        (root / side).mkdir()
        encoded = {}
        for name, image in members.items():
            encoded[name] = cv2.imencode(".png", image)[1].tobytes()
            (root / side / f"{name}.png").write_bytes(encoded[name])
        _write_lmdb(root / f"{side}.lmdb", encoded, members)
    return TinyPairs(names, root / "gt", root / "lq", root / "gt.lmdb", root / "lq.lmdb")


def _write_lmdb(path: Path, encoded: dict[str, bytes], images: dict[str, np.ndarray]) -> None:
    """An LMDB as BasicSR's readers expect it."""
    import lmdb

    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for name, content in encoded.items():
            transaction.put(name.encode(), content)
    lines = [f"{name}.png ({','.join(map(str, image.shape))}) 1" for name, image in images.items()]
    (path / "meta_info.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def browser(_chromium: Any) -> Any:
    """Chromium without a window, driven by selenium; skips the test where one of them is missing."""
    for kind in ("browser", "performance"):  # what an earlier test has logged
        _chromium.get_log(kind)
    return _chromium


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver (Debian packages chromium and chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the Python package selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1000,900",
        "--disable-gpu",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()
