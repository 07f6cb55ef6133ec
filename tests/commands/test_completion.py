"""`bam completion` gives scripts that real shells take, and that know the words of bam."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("shtab")

from bam_plugin.cli import COMMANDS, main
from bam_plugin.commands.completion import SHELLS


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_with_all_commands(shell, capsys) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "precision" in script


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_options_and_choices(tmp_path: Path, capsys) -> None:
    main(["completion", "bash"])
    (tmp_path / "bam.sh").write_text(capsys.readouterr().out)

    def completed(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        program = f"""
            source {tmp_path / "bam.sh"}
            COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
            _shtab_bam; printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=tmp_path)
        return set(result.stdout.split())

    assert {"upscale"} == completed("bam", "ups")
    assert {"--precision", "--preset"} == completed("bam", "upscale", "--pre")
    assert {"int8", "int16"} == completed("bam", "upscale", "--precision", "int")
