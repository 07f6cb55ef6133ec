"""Networks of the user's own: `--import MODULE`, and the key `import` of an option file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from helpers.networks import SMALL_BSRN
from helpers.training_options import tiny_options

from bam_plugin.cli import main
from bam_plugin.config import OptionsError, load_options, network_options, read_options
from bam_plugin.toolbox.registration import ImportOptionError, import_by_name

NETWORK = """
from basicsr.utils.registry import ARCH_REGISTRY
from bam_plugin.archs.bsrn_arch import BSRN

@ARCH_REGISTRY.register()
class {name}(BSRN):
    pass
"""


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A network that nobody else has, and the file that registers it, in the current directory."""
    name = f"Own{abs(hash(request.node.name))}"
    path = tmp_path / f"{name.lower()}_arch.py"
    path.write_text(NETWORK.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name, path


@pytest.mark.parametrize("by_file", [True, False])
def test_option_file_names_its_modules(own_network: tuple[str, Path], tiny_pairs: object, by_file: bool) -> None:
    name, path = own_network
    options = {**tiny_options(tiny_pairs, total_iter=2), "network_g": {**SMALL_BSRN, "type": name}}
    Path("train.yml").write_text(yaml.safe_dump(options))
    with pytest.raises(OptionsError, match=f"{name} is not registered"):
        load_options("train.yml", is_train=True)
    options["import"] = path.name if by_file else [path.stem]
    Path("train.yml").write_text(yaml.safe_dump(options))
    loaded = load_options("train.yml", is_train=True)
    assert loaded.values["import"] == options["import"]  # an expanded copy can be used again
    assert network_options("train.yml")["type"] == name


def test_command_line_names_a_file(own_network: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    name, path = own_network
    words = ["profile", name, "--totals", "--set", "num_hpb=1"]
    assert main(words) == 2
    assert name in capsys.readouterr().err
    assert main([*words, "--import", str(path)]) == 0
    assert f"## {name}" in capsys.readouterr().out
    import_by_name([str(path), path.name])  # again: registered once


def test_what_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("broken_arch.py").write_text("1 / 0\n")
    for name, words in (
        ("no_such_module", "ModuleNotFoundError"),
        ("no_such.py", "there is no file"),
        ("broken_arch.py", "ZeroDivisionError"),
        ("broken_arch.py", "ZeroDivisionError"),
        ("json.py", "there is no file"),
    ):
        with pytest.raises(ImportOptionError, match=words):
            import_by_name([name])
    Path("json.py").write_text("")
    with pytest.raises(ImportOptionError, match="a module json is imported already"):
        import_by_name(["json.py"])
    Path("bad.yml").write_text("import: {a: 1}\n")
    with pytest.raises(OptionsError, match=r"bad\.yml:1: import takes a module"):
        _ = read_options("bad.yml").imports
