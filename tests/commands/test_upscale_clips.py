"""`bam upscale` with clips: names of results, lines and JSON, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.upscale_models import write_tiny

pytest.importorskip("av")

from helpers.clips import damage, times_of, write_clip

from bam_plugin.cli import main
from bam_plugin.upscale import Upscaler


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_tiny(tmp_path, scale=2))


def test_a_clip_becomes_a_larger_one_and_its_frames_are_told(tmp_path, model, capsys) -> None:
    source = write_clip(tmp_path / "clip.mp4")
    assert main(["upscale", "-i", str(source), "-o", str(tmp_path / "large.mkv"), "-m", model, "--crf", "20"]) == 0
    assert times_of(tmp_path / "large.mkv") == pytest.approx(times_of(source), abs=0.001)  # Matroska: milliseconds
    line = capsys.readouterr().out
    assert "48x36 -> 96x72  12 frames" in line and " fps" in line


def test_several_clips_go_into_a_folder_and_a_bad_one_does_not_stop_the_rest(tmp_path, model, capsys) -> None:
    (tmp_path / "bad.mkv").write_text("no clip")
    good = write_clip(tmp_path / "good.mkv")
    arguments = ["-i", str(tmp_path / "bad.mkv"), str(good), "-o", str(tmp_path / "out"), "-m", model, "--json"]
    assert main(["upscale", *arguments, "--suffix", "_large"]) == 1
    shown = capsys.readouterr()
    first, second = json.loads(shown.out)["clips"]
    assert (first["status"], first["error_class"]) == ("failed", "VideoError")
    assert (second["status"], second["frames"], second["size"]) == ("done", 12, [96, 72])
    assert "1 of 2 failed" in shown.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_large.mkv"]


def test_without_an_output_the_result_lies_beside_the_clip(tmp_path, model) -> None:
    write_clip(tmp_path / "clip.mp4", frames=2)
    assert main(["upscale", "-i", str(tmp_path / "clip.mp4"), "-m", model, "-q"]) == 0
    assert len(times_of(tmp_path / "clip_x2.mp4")) == 2


def test_strict_stops_at_a_damaged_frame(tmp_path, model, capsys) -> None:
    whole = write_clip(tmp_path / "whole.mkv", codec="ffv1", gop=1)
    damage(whole, (5,), tmp_path / "clip.mkv")
    arguments = ["upscale", "-i", str(tmp_path / "clip.mkv"), "-o", str(tmp_path / "large.mkv"), "-m", model]
    assert main([*arguments, "--strict"]) == 1
    assert "DamagedFrameError" not in capsys.readouterr().out
    assert not (tmp_path / "large.mkv").exists()
    assert main(arguments) == 0
    assert "last good frame is repeated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["clip.mkv", "photo.png"], "out", "is no clip"),
        (["clip.mkv", "none.mkv"], "out", "no such file"),
        (["clip.mkv", "other.mkv"], "large.mkv", "2 inputs"),
        (["clip.mkv", "sub/clip.mkv"], "out", "one name"),
    ],
)
def test_contradictions_are_refused_before_any_work(tmp_path, model, capsys, inputs, output, message) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("clip.mkv", "other.mkv", "photo.png", "sub/clip.mkv"):
        (tmp_path / name).write_bytes(b"")
    names = [str(tmp_path / name) for name in inputs]
    assert main(["upscale", "-i", *names, "-o", str(tmp_path / output), "-m", model]) == 2
    assert message in capsys.readouterr().err


def test_the_upscaler_takes_clips_too(tmp_path, model) -> None:
    source = write_clip(tmp_path / "clip.mp4", frames=3)
    result = Upscaler(model, threads=1).upscale_video(source, tmp_path / "large.mp4", codec="mpeg4")
    assert (result.frames, result.size) == (3, (96, 72))
