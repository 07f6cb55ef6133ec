"""The house: dependencies point one way, heavy imports wait until they are needed, the demo's pieces fit."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.places import PACKAGE, ROOT, TESTS

LIGHT = ["errors.py", "files.py", "cli.py", "__init__.py"]

# Folder or file -> what it must never import, at any depth of its functions.
FORBIDDEN = {
    "nn": ("basicsr", "bam_plugin.archs", "bam_plugin.models", "bam_plugin.optim", "bam_plugin.packed", "cv2"),
    "packed": ("torch", "basicsr", "bam_plugin.archs", "bam_plugin.models", "bam_plugin.nn"),
    "bench": ("basicsr", "bam_plugin.archs", "bam_plugin.models", "bam_plugin.nn", "bam_plugin.commands"),
    "optim": ("basicsr.models", "bam_plugin.archs", "bam_plugin.models"),
    "archs": ("bam_plugin.models", "bam_plugin.optim", "bam_plugin.commands"),
    "config": ("bam_plugin.models",),
    **{name: ("torch", "basicsr") for name in LIGHT},
}
# The torch side of deployment: the only modules of packed/ that may know PyTorch.
TORCH_SIDE = {
    "activation_steps.py",
    "converter.py",
    "layer_report.py",
    "lowering.py",
    "lowering_emitter.py",
    "lowering_ops.py",
    "mixed_engine.py",
    "mixed_network.py",
    "verify.py",
    "reach.py",
    "torch_module.py",
    "torch_op.py",
}


def imported_names(path: Path) -> set[str]:
    """Full names of all modules that `path` imports, those inside functions and under TYPE_CHECKING included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("place", FORBIDDEN)
def test_dependencies_point_one_way(place: str) -> None:
    root = PACKAGE / place
    files = [root] if root.is_file() else sorted(root.rglob("*.py"))
    assert files
    for path in files:
        if place == "packed" and path.name in TORCH_SIDE:
            continue
        for name in imported_names(path):
            wrong = [banned for banned in FORBIDDEN[place] if name == banned or name.startswith(banned + ".")]
            assert not wrong, f"{path.relative_to(PACKAGE)} imports {name}"


def test_no_test_imports_another() -> None:
    """What two tests share is in tests/helpers, where neither has to be collected for the other."""
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 60
    for path in files:
        parts = {name: name.split(".") for name in imported_names(path)}
        shared = [name for name, words in parts.items() if words[0] in ("tests", "conftest") or "test_" in words[0]]
        assert not shared, f"{path.relative_to(TESTS)} imports {sorted(shared)}"


@pytest.mark.parametrize("statement", ["import bam_plugin", "import bam_plugin.cli", "import bam_plugin.packed"])
def test_light_imports_stay_light(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(sorted({{'torch', 'basicsr', 'PIL'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_lazy_submodules_resolve_and_unknown_names_fail() -> None:
    import bam_plugin

    assert bam_plugin.errors.BamError.exit_code == 2
    assert "packed" in dir(bam_plugin)
    with pytest.raises(AttributeError, match="no_such_part"):
        _ = bam_plugin.no_such_part


def test_every_command_has_a_module_with_help() -> None:
    from bam_plugin.cli import COMMANDS, build_parser

    modules = {path.stem for path in (PACKAGE / "commands").glob("*.py")} - {"__init__"}
    assert modules == set(COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            build_parser(name).parse_args([name, "--help"])
        assert stop.value.code == 0


def test_bad_input_becomes_a_message_and_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bam_plugin.cli import main

    assert main(["inspect", str(tmp_path / "missing.bam.safetensors")]) == 2
    captured = capsys.readouterr()
    assert "missing.bam.safetensors" in captured.err
    assert "Traceback" not in captured.err


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    from bam_plugin.files import atomic_path

    target = tmp_path / "folder/result.png"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == target.parent
        temporary.write_bytes(b"first")
    assert target.read_bytes() == b"first"
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"first"
    assert list(target.parent.iterdir()) == [target]


def test_demo_tells_held_out_photos_from_training_photos() -> None:
    skimage = pytest.importorskip("skimage")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import demo
    finally:
        sys.path.pop(0)
    source = Path(skimage.__file__).parent / "data"
    assert not set(demo.TRAINING_PHOTOS) & set(demo.HELD_OUT_PHOTOS)
    assert all((source / name).exists() for name in (*demo.TRAINING_PHOTOS, *demo.HELD_OUT_PHOTOS))
    assert demo.TRAIN_OPTIONS.exists()
    assert demo.TEST_OPTIONS.exists()
