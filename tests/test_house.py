"""The house: dependencies point one way, heavy imports wait until they are needed, the demo's pieces fit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.imports import circle_in, import_graph, modules_of, reached_from, room_of
from helpers.places import PACKAGE, ROOT, TESTS

# Room -> the rooms that it may import. Any of them may import errors.py and files.py, which import nothing of the
# package, and the version from bam_plugin itself. commands may import everything.
ARROWS = {
    "nn": "",
    "toolbox": "",
    "packed": "",
    "pictures": "",
    "engine": "packed",
    "upscale": "pictures engine packed",
    "serve": "upscale pictures packed",
    "optim": "nn toolbox",
    "data": "packed pictures upscale toolbox",
    "mixed": "nn packed engine toolbox",
    "archs": "nn packed engine mixed pictures toolbox",
    "config": "nn optim toolbox",
    "conversion": "nn packed engine mixed pictures data config toolbox",
    "models": "nn optim data pictures toolbox",
    "train": "models config optim data toolbox",
    "bench": "packed engine conversion",
    "": "toolbox",
    "cli": "toolbox",
    "__main__": "cli",
}
LEAVES = {"errors", "files"}
EVERYTHING = {"commands"}
TORCH_FREE = ("packed", "engine", "pictures", "upscale", "serve")
HEAVY = {"torch", "torchvision", "basicsr"}


def test_every_room_has_its_arrows() -> None:
    rooms = {room_of(module) for module in modules_of(PACKAGE)}
    assert rooms == {*ARROWS, *LEAVES, *EVERYTHING}
    assert not circle_in({room: set(others.split()) for room, others in ARROWS.items()})


def test_arrows_between_rooms_point_one_way() -> None:
    for module, imported in import_graph(PACKAGE).items():
        room = room_of(module)
        allowed = {room, "", *LEAVES, *ARROWS.get(room, "").split()} if room not in LEAVES else set()
        for name in imported:
            if name.partition(".")[0] == "bam_plugin" and room not in EVERYTHING:
                assert room_of(name) in allowed, f"{module} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle_in(import_graph(PACKAGE)) == []
    assert circle_in({"a": {"b", "c"}, "b": {"torch"}, "c": {"d"}, "d": {"c"}}) == ["c", "d", "c"]


@pytest.mark.parametrize("room", TORCH_FREE)
def test_torch_free_rooms_reach_no_torch(room: str) -> None:
    graph = import_graph(PACKAGE)
    for module in graph:
        if room_of(module) == room:
            for name, by in reached_from(module, graph).items():
                assert name.partition(".")[0] not in HEAVY, f"{module} reaches {by}, which imports {name}"


def test_torch_free_rooms_are_imported_where_there_is_no_torch() -> None:
    modules = [module for module in modules_of(PACKAGE) if room_of(module) in TORCH_FREE]
    block = f"import sys\nsys.modules.update(dict.fromkeys({sorted(HEAVY)}))\n"
    code = block + "".join(f"import {module}\n" for module in modules)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_test_imports_another() -> None:
    """What two tests share is in tests/helpers, where neither has to be collected for the other."""
    graph = import_graph(TESTS)
    assert len(graph) > 60
    for module, imported in graph.items():
        shared = [name for name in imported if re.match(r"(tests|conftest)\b|test_", name)]
        assert not shared, f"{module} imports {shared}"


@pytest.mark.parametrize("statement", ["import bam_plugin", "import bam_plugin.cli", "import bam_plugin.packed"])
def test_light_imports_stay_light(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(sorted({{'torch', 'basicsr', 'PIL'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_resolve_lazily_and_unknown_names_fail() -> None:
    import bam_plugin

    for name in bam_plugin.__all__:
        found = getattr(bam_plugin, name)
        assert name == "__version__" or found.__doc__, f"{name} has no docstring"
    assert "packed" in dir(bam_plugin)
    with pytest.raises(AttributeError, match="no_such_part"):
        _ = bam_plugin.no_such_part


def test_no_room_has_a_public_name() -> None:
    # A room that is imported would take the name's place.
    from bam_plugin import _PUBLIC, _ROOMS

    rooms = {room_of(module) for module in modules_of(PACKAGE)}
    assert not set(_PUBLIC) & rooms
    assert set(_ROOMS) == rooms - {"", "cli", "__main__"}


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
