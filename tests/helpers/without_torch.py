"""A process that finds nothing of the extra `train`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bam_plugin.errors import TRAINING_LIBRARIES
from helpers.places import ROOT

# What Python itself raises for a module that is not there.
BLOCKED = f"""
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {TRAINING_LIBRARIES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Blocker())
"""
COMMAND = """
from bam_plugin import cli

sys.exit(cli.main(sys.argv[1:]))
"""


def blocked(program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{BLOCKED}sys.path.insert(0, {str(ROOT)!r})\n{program}", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
