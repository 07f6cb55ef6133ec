"""`bam upscale` as people call it: files, folders, patterns, faults, interruptions."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.places import ROOT
from helpers.upscale_models import write_tiny
from PIL import Image

from bam_plugin.cli import main
from bam_plugin.pictures.formats import written_formats
from bam_plugin.upscale import Upscaler, upscale_files
from bam_plugin.upscale.batch_progress import BatchProgress

needs_avif = pytest.mark.skipif("avif" not in written_formats(), reason="this Pillow writes no AVIF")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture
def album(tmp_path) -> Path:
    """Four good pictures in a tree, one damaged, one that is text, one of another kind, one hidden."""
    folder = tmp_path / "album"
    (folder / "sub" / "deep").mkdir(parents=True)
    _picture(folder / "a.png")
    _picture(folder / "b.JPG")
    _picture(folder / "sub" / "ü 写真.png", channels=4)
    _picture(folder / "sub" / "deep" / "wrong.png", format="JPEG")
    content = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "notes.txt").write_text("not asked for")
    (folder / ".hidden.png").write_bytes(content)
    return folder


def _picture(path: Path, *, size=(12, 9), channels: int = 3, format: str | None = None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    Image.fromarray(pixels).save(path, format=format)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _command(*args) -> list[str]:
    return [sys.executable, "-m", "bam_plugin.cli", "upscale", *map(str, args)]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_a_folder_keeps_its_tree_and_one_bad_file_does_not_stop_the_rest(album, tmp_path, model, capsys):
    out = tmp_path / "out"
    assert main(["upscale", "-i", str(album), "-o", str(out), "-m", model, "--recursive"]) == 1
    assert _files(out) == ["a.png", "b.jpg", "sub/deep/wrong.jpg", "sub/ü 写真.png"]
    with Image.open(out / "sub" / "ü 写真.png") as image:
        assert image.size == (48, 36) and image.mode == "RGBA"
    shown = capsys.readouterr()
    assert "12x9 -> 48x36" in shown.out and "cut.png" not in shown.out
    tail = shown.err.split("2 of 6 failed:\n")[1]
    assert "cut.png: the picture is damaged" in tail and "text.png: the content is no picture" in tail
    assert "6/6" in shown.err and "MP/s" in shown.err and "ETA" in shown.err


def test_without_recursive_only_the_folder_itself(album, tmp_path, model):
    assert main(["upscale", "-i", str(album), "-o", str(tmp_path / "out"), "-m", model]) == 1
    assert _files(tmp_path / "out") == ["a.png", "b.jpg"]


def test_patterns_and_several_inputs(album, tmp_path, model):
    out = tmp_path / "out"
    pattern = str(album / "**" / "[aü]*.png")
    assert main(["upscale", "-i", pattern, str(album / "b.JPG"), "-o", str(out), "-m", model, "-q"]) == 0
    assert _files(out) == ["a.png", "b.jpg", "sub/ü 写真.png"]


def test_json_is_one_document_with_every_file(album, tmp_path, model, capsys):
    assert main(["upscale", "-i", str(album), "-o", str(tmp_path / "out"), "-m", model, "--json", "-s", "2"]) == 1
    document = json.loads(capsys.readouterr().out)
    by_name = {Path(entry["source"]).name: entry for entry in document["files"]}
    assert by_name["a.png"]["status"] == "done" and by_name["a.png"]["size"] == [24, 18]
    assert "resized to 2 times" in by_name["a.png"]["notes"][0]
    assert by_name["cut.png"]["error_class"] == "DamagedPictureError"
    assert document["model"]["scale"] == 4 and document["scale"] == 2 and len(document["model"]["sha256"]) == 64


def test_the_exact_network_of_a_scale_is_taken(album, tmp_path, model, capsys):
    folder = Path(model).parent
    write_tiny(folder, scale=2)
    arguments = ["upscale", "-i", str(album / "a.png"), "-o", str(tmp_path / "out"), "-m", model, "--json"]
    for scale, network, resized in ((2, 2, False), (3, 4, True), (4, 4, False)):
        assert main([*arguments, "-s", str(scale)]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["model"]["scale"] == network and bool(document["files"][0]["notes"]) == resized


def test_verbose_shows_where_a_failure_comes_from(album, tmp_path, model):
    command = _command("-i", album / "cut.png", "-o", tmp_path / "out", "-m", model, "-v")
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr and "threads" in done.stderr


def test_dry_run_says_all_and_writes_nothing(album, tmp_path, model, capsys):
    out = tmp_path / "out"
    assert main(["upscale", "-i", str(album / "a.png"), "-o", str(out), "-m", model, "--dry-run"]) == 0
    assert "out/a.png  12x9 -> 48x36  (not done: dry run)" in capsys.readouterr().out
    assert not out.exists()


def test_skip_existing_leaves_what_is_there(album, tmp_path, model, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_text("mine")
    arguments = ["upscale", "-i", str(album / "a.png"), str(album / "b.JPG"), "-o", str(out), "-m", model]
    assert main([*arguments, "--skip-existing"]) == 0
    assert (out / "a.png").read_text() == "mine" and (out / "b.jpg").exists()
    assert "is there, skipped" in capsys.readouterr().out
    assert main(arguments) == 0
    assert (out / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_an_input_is_never_overwritten(album, model, capsys):
    before = {name: (album / name).read_bytes() for name in _files(album)}
    assert main(["upscale", "-i", str(album), "-o", str(album), "-m", model]) == 1
    assert "a.png: is an input; choose another folder or a --suffix" in capsys.readouterr().err
    for name, content in before.items():
        assert (album / name).read_bytes() == content
    # A name that differs is fine, in the same folder too, and is not taken for an input when the run is repeated.
    assert main(["upscale", "-i", str(album / "a.png"), "-o", str(album), "-m", model, "--suffix", "_x4"]) == 0
    assert (album / "a_x4.png").exists()


def test_without_an_output_results_lie_beside_their_inputs(album, model):
    before = {name: (album / name).read_bytes() for name in _files(album)}
    arguments = ["upscale", "-i", str(album), "-m", model, "--recursive", "-q"]
    made = ["a_x4.png", "b_x4.jpg", "sub/deep/wrong_x4.jpg", "sub/ü 写真_x4.png"]
    # A second run takes no result of the first one for an input.
    assert main(arguments) == main(arguments) == 1
    assert _files(album) == sorted([*before, *made])
    for name, content in before.items():
        assert (album / name).read_bytes() == content
    assert main(["upscale", "-i", str(album / "*.png"), "-m", model, "-s", "2.5", "-q", "--skip-existing"]) == 1
    assert (album / "a_x2.5.png").exists() and (album / "a_x4_x2.5.png").exists()
    # What is named is wanted.
    assert main(["upscale", "-i", str(album / "a_x4.png"), "-m", model, "--suffix", "_large", "-q"]) == 0
    with Image.open(album / "a_x4_large.png") as image:
        assert image.size == (192, 144)


def test_results_inside_the_input_folder_are_not_inputs_of_the_next_run(album, model):
    arguments = ["upscale", "-i", str(album), "-o", str(album / "large"), "-m", model, "--recursive", "-q"]
    assert main(arguments) == main(arguments) == 1
    assert _files(album / "large") == ["a.png", "b.jpg", "sub/deep/wrong.jpg", "sub/ü 写真.png"]


def test_two_inputs_of_one_name_are_not_mixed_up(tmp_path, model, capsys):
    _picture(tmp_path / "a.png")
    _picture(tmp_path / "a.bmp", size=(5, 5))
    inputs = [str(tmp_path / "a.png"), str(tmp_path / "a.bmp")]
    assert main(["upscale", "-i", *inputs, "-o", str(tmp_path / "out"), "-m", model]) == 1
    assert "is already the result of" in capsys.readouterr().err
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (48, 36)


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("grey.jpg", [], ("JPEG", "L")),
        ("rgb.webp", [], ("WEBP", "RGB")),
        ("rgba.webp", [], ("WEBP", "RGBA")),
        ("rgb.bmp", [], ("PNG", "RGB")),
        ("deep.png", [], ("PNG", "I;16")),
        ("rgba.png", ["--ext", "jpg", "--quality", "60"], ("JPEG", "RGB")),
        ("rgb.jpg", ["--ext", "webp"], ("WEBP", "RGB")),
        pytest.param("rgba.png", ["--ext", "avif"], ("AVIF", "RGBA"), marks=needs_avif),
    ],
)
def test_the_format_of_the_result(tmp_path, model, source, options, expected):
    kind = source.partition(".")[0]
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), np.uint8)
    arrays = {"grey": pixels[:, :, 0], "rgb": pixels[:, :, :3], "rgba": pixels, "deep": pixels[:, :, 0] * np.uint16(99)}
    Image.fromarray(np.ascontiguousarray(arrays[kind])).save(tmp_path / source)
    assert main(["upscale", "-i", str(tmp_path / source), "-o", str(tmp_path / "out"), "-m", model, *options]) == 0
    (result,) = (tmp_path / "out").iterdir()
    with Image.open(result) as image:
        assert (image.format, image.mode) == expected
        assert image.size == (48, 36)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "{album}/none.png", "-o", "{album}/out"], "there is no such file or folder"),
        (["-i", "{album}/*.gif", "-o", "{album}/out"], "no file matches"),
        (["-i", "{album}/sub/deep/none", "-o", "x"], "no such"),
        (["-i", "{album}", "-o", "{album}/out.png"], "is one file, but there are"),
        (["-i", "{album}/a.png", "-o", "{album}/out.tif"], "pictures are written as .png"),
        (["-i", "{album}/a.png", "-o", "{album}/notes.txt"], "is a file"),
        (["-i", "{album}/a.png", "-o", "{album}/x.png", "--ext", "jpg"], "another format than --ext jpg"),
        (["-i", "{album}/a.png", "-o", "x", "-m", "none"], "no network of the zoo"),
        (["-i", "{album}/a.png", "-o", "x", "-m", "{album}/notes.txt"], "notes.txt"),
        (["-i", "{album}/a.png", "-o", "x", "--isa", "z80"], "z80"),
    ],
)
def test_usage_that_cannot_work_is_code_2_and_says_why(album, model, capsys, arguments, message):
    arguments = [word.format(album=album) for word in arguments]
    if "-m" not in arguments:
        arguments += ["-m", model]
    before = _files(album)
    assert main(["upscale", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert _files(album) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "--max-megapixels inf",
        "--max-megapixels nan",
        "-s 0",
        "-s 17",
        "-s x",
        "-t -1",
        "-t x",
        "-j 0",
        "--quality 101",
        "--max-megapixels 0",
        "--ext tif",
        "-q -v",
    ],
)
def test_wrong_values_are_code_2(album, model, arguments):
    with pytest.raises(SystemExit) as exit:
        main(["upscale", "-i", str(album / "a.png"), "-o", "x", "-m", model, *arguments.split()])
    assert exit.value.code == 2


def test_the_size_limit_can_be_raised(album, tmp_path, model, capsys):
    arguments = ["upscale", "-i", str(album / "a.png"), "-o", str(tmp_path / "out"), "-m", model]
    assert main([*arguments, "--max-megapixels", "0.0001"]) == 1
    assert "exceed the limit of 0.0001 megapixels" in capsys.readouterr().err
    assert main([*arguments, "--max-megapixels", "0.000108"]) == 0


def test_an_unwritable_folder_fails_by_name_and_leaves_nothing(album, tmp_path, model, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file where a folder is needed")
    assert main(["upscale", "-i", str(album), "-o", str(tmp_path / "out"), "-m", model, "--recursive"]) == 1
    assert str(tmp_path / "out" / "sub") in capsys.readouterr().err
    assert _files(tmp_path / "out") == ["a.png", "b.jpg", "sub"]


def test_long_names_and_the_permissions_of_results(tmp_path, model):
    name = "n" * 251 + ".png"  # 255 bytes, the longest that file systems take
    _picture(tmp_path / name)
    before = os.umask(0o027)
    try:
        assert main(["upscale", "-i", str(tmp_path / name), "-o", str(tmp_path / "out"), "-m", model, "-q"]) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_names_that_are_no_text_are_no_obstacle(tmp_path, model, options):
    name = os.fsencode(tmp_path / "in") + b"/\xff\xfe.png"
    (tmp_path / "in").mkdir()
    try:
        _picture(Path(os.fsdecode(name)))
    except OSError:
        pytest.skip("this file system takes only names that are text")
    command = _command("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, *options)
    done = subprocess.run(command, env={**_environment(), "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    assert b"udcff" in done.stdout
    assert [os.fsencode(path.name) for path in (tmp_path / "out").iterdir()] == [b"\xff\xfe.png"]


def test_quiet_prints_only_failures(album, tmp_path, model, capsys):
    assert main(["upscale", "-i", str(album / "a.png"), "-o", str(tmp_path / "out"), "-m", model, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def _run_with_output(arguments: list, stdout, **options) -> tuple[int, str]:
    """Exit code and standard error of the command with this standard output."""
    done = subprocess.run(
        _command(*arguments),
        env=_environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **options,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("kind", ["broken pipe", "closed", "full"])
def test_the_work_is_done_though_nobody_reads_its_lines(album, tmp_path, model, kind, options):
    arguments = ["-i", album / "a.png", album / "b.JPG", "-o", tmp_path / "out", "-m", model, *options]
    if kind == "full":
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        with Path("/dev/full").open("w") as stdout:
            code, shown = _run_with_output(arguments, stdout)
    elif kind == "closed":
        code, shown = _run_with_output(arguments, None, preexec_fn=lambda: os.close(1))
    else:
        reader, writer = os.pipe()
        os.close(reader)
        code, shown = _run_with_output(arguments, writer)
        os.close(writer)
    assert _files(tmp_path / "out") == ["a.png", "b.jpg"]
    # Who closes it wants no lines; what cannot be delivered is said.
    assert code == (1 if options and kind != "closed" else 0)
    assert ("what was to be printed is lost" in shown) == (kind != "closed")
    assert "Traceback" not in shown and "Exception" not in shown


def test_the_work_is_done_though_nobody_reads_its_progress(album, tmp_path, model):
    command = _command("-i", album / "a.png", album / "cut.png", "-o", tmp_path / "out", "-m", model)
    done = subprocess.run(
        command, env=_environment(), stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2), text=True, check=False
    )
    assert done.returncode == 1 and "12x9 -> 48x36" in done.stdout and _files(tmp_path / "out") == ["a.png"]


def test_the_function_does_what_the_command_does(album, tmp_path, model):
    assert main(["upscale", "-i", str(album), "-o", str(tmp_path / "command"), "-m", model, "--recursive", "-q"]) == 1
    results = upscale_files(album, tmp_path / "function", model=model, recursive=True)
    assert _files(tmp_path / "function") == _files(tmp_path / "command")
    for name in _files(tmp_path / "command"):
        assert (tmp_path / "function" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    failed = {result.source.name: type(result.error).__name__ for result in results if result.status == "failed"}
    assert failed == {"cut.png": "DamagedPictureError", "text.png": "UnknownPictureError"}
    upscaler = Upscaler(model)
    (again,) = upscale_files([album / "a.png"], tmp_path / "function", model=upscaler, skip_existing=True)
    assert again.status == "skipped"
    (planned,) = upscale_files(str(album / "a.png"), tmp_path / "x.png", model=upscaler, scale=2, dry_run=True)
    assert (planned.status, planned.source_size, planned.size) == ("planned", (12, 9), (24, 18))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_moving_line():
    stream = Terminal()
    with BatchProgress(files=2, pixels=3_000_000, stream=stream) as progress:
        with progress.picture("first.png", 1_000_000):
            progress.advance(1_000_000)
        with progress.picture("broken.png", 2_000_000):
            pass
    text = stream.getvalue()
    assert "1/2 first.png" in text and "2/2 broken.png" in text and "ETA" in text and "MP/s" in text
    # What was not computed is no remaining work.
    assert "1.00/1.00 MP" in text and "\n" not in text.rstrip("\n")


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [(5, "0.000005/0.000005"), (48 * 64, "0.0031/0.0031"), (99_999, "0.100/0.100"), (10**8, "100.00/100.00")],
)
@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_progress_shows_digits_of_small_pictures(pixels, shown, stream_type):
    stream = stream_type()
    with BatchProgress(files=1, pixels=pixels, stream=stream) as progress, progress.picture("a.png", pixels):
        progress.advance(pixels)
    assert f" {shown} MP" in stream.getvalue()


def _many(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for index in range(count):
        _picture(folder / f"{index:02d}.png", size=(64, 48))
    return folder


def _wait_for(condition, process: subprocess.Popen) -> None:
    # Bounded by the process's own end: nothing here measures time.
    while not condition() and process.poll() is None:
        time.sleep(0.005)


def test_a_link_that_leads_nowhere_fails_alone(tmp_path, model, capsys):
    (tmp_path / "in").mkdir()
    _picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    (tmp_path / "in" / "first").symlink_to("second")
    (tmp_path / "in" / "second").symlink_to("first")
    arguments = ["upscale", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", model, "--recursive"]
    assert main(arguments) == 1
    assert "1 of 2 failed" in (err := capsys.readouterr().err) and "loop.png" in err
    assert _files(tmp_path / "out") == ["a.png"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_leaves_whole_files_and_can_be_continued(tmp_path, model, sent, code):
    source, out = _many(tmp_path / "in"), tmp_path / "out"
    command = _command("-i", source, "-o", out, "-m", model, "--isa", "reference", "-t", 32, "--skip-existing")
    process = subprocess.Popen(
        command,
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A test run in the background of a shell ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # An unfinished file is there: a hidden name beside at least two results.
    _wait_for(lambda: out.exists() and len(list(out.glob("[0-9]*"))) > 1 and list(out.glob(".*")), process)
    process.send_signal(sent)
    assert process.wait(timeout=60) == code
    visible = [path for path in out.iterdir() if path.name[0] != "."]
    assert 2 <= len(visible) < 12
    if sent != signal.SIGKILL:
        assert not list(out.glob(".*"))
    times = {path: path.stat().st_mtime_ns for path in visible}
    assert main(["upscale", "-i", str(source), "-o", str(out), "-m", model, "-q", "--skip-existing"]) == 0
    results = [path for path in out.iterdir() if path.name[0] != "."]
    assert len(results) == 12
    for path in results:
        with Image.open(path) as image:
            image.load()
            assert image.size == (256, 192)
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    # What a kill left unfinished is gone, too.
    assert not list(out.glob(".*"))


def test_only_abandoned_files_of_our_own_naming_are_removed(tmp_path, model, capsys):
    _picture(tmp_path / "a.png")
    out = tmp_path / "out"
    code = (
        "import os, signal, sys; from bam_plugin.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_bytes(b'half'); print(path, flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": _environment()}
    killed, alive = (
        subprocess.Popen([sys.executable, "-c", code, out / name], text=True, **pipes) for name in ("a.png", "b.png")
    )
    abandoned, unfinished = (Path(process.stdout.readline().strip()) for process in (killed, alive))
    others = [out / ".a.0123456789abcdef.png", out / ".a.bam-0123.png", out / "a.bam-0123456789abcdef.png"]
    for path in others:
        path.write_bytes(b"somebody's")
    link = out / ".c.bam-0123456789abcdef.png"
    link.symlink_to(tmp_path / "a.png")
    killed.kill()
    killed.communicate()
    assert abandoned.exists() and unfinished.exists()
    arguments = ["upscale", "-i", str(tmp_path / "a.png"), "-o", str(out), "-m", model]
    assert main([*arguments, "--dry-run"]) == 0 and abandoned.exists()
    assert main(arguments) == 0
    assert f"removed {abandoned}" in capsys.readouterr().err
    assert not abandoned.exists() and all(path.exists() for path in (*others, link, unfinished))
    alive.communicate("")
    assert alive.returncode == 0 and (out / "b.png").read_bytes() == b"half" and not unfinished.exists()


def test_concurrent_runs_into_one_folder_agree(tmp_path, model):
    source, out = _many(tmp_path / "in", 4), tmp_path / "out"
    command = _command("-i", source, "-o", out, "-m", model, "-q")
    processes = [subprocess.Popen(command, env=_environment()) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert main(["upscale", "-i", str(source), "-o", str(tmp_path / "alone"), "-m", model, "-q"]) == 0
    assert _files(out) == _files(tmp_path / "alone")
    for name in _files(out):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_the_command_runs_without_torch(tmp_path, album, model):
    blocked = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'basicsr'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from bam_plugin.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", blocked, "upscale", "-i", album / "a.png", "-o", tmp_path / "x.png", "-m", model]
    subprocess.run([str(word) for word in command], env=_environment(), check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "x.png").exists()
