"""Where OpenCV cannot be loaded, the error names both ways out; nothing depends on which of its packages is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.places import PACKAGE, ROOT


@pytest.mark.parametrize("command", ["upscale -i a.png -o b.png", "compare a.png"])
def test_a_missing_system_library_is_explained(tmp_path: Path, command: str) -> None:
    (tmp_path / "cv2").mkdir()
    message = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2/__init__.py").write_text(f"raise ImportError({message!r})")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    arguments = [sys.executable, "-m", "bam_plugin", *command.split()]
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for words in (message, "apt-get install libgl1", "pip install opencv-python-headless", "MissingDependencyError"):
        assert words in done.stderr


def test_opencv_is_imported_in_one_place() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^\s*(import cv2|from cv2)\b", path.read_text(encoding="utf-8"), re.M)
    }
    assert found == {"pictures/opencv.py"}
