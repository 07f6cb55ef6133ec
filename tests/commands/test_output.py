"""Results that nobody can read: a closed output, a pipe whose reader has gone, a full disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.places import ROOT

COMMAND = f"{sys.executable} -m bam_plugin options"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_reader_that_has_gone_is_no_error() -> None:
    result = shell(f"{COMMAND} --json | true; echo ${{PIPESTATUS[0]}}")
    assert (result.stdout.strip(), result.stderr) == ("141", "")


def test_a_closed_output_is_no_error() -> None:
    result = shell(f"{COMMAND} >&-")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named() -> None:
    result = shell(f"{COMMAND} > /dev/full")
    assert result.returncode == 2
    assert "No space left on device" in result.stderr and "Traceback" not in result.stderr
