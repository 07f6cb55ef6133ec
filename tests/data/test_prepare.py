"""Preparing training sets: what is written, odd files, refusing, resuming, and that a half is never taken for whole."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.data_images import picture, write

from bam_plugin.cli import main
from bam_plugin.data import prepare as prepare_module
from bam_plugin.data.dataset_writer import DatasetWriter
from bam_plugin.data.images import read_image, unique_keys
from bam_plugin.data.prepare import prepare_div2k, prepare_training_set
from bam_plugin.data.source import ImageSource
from bam_plugin.data.storage import AlreadyPreparedError, StorageError, close_lmdb
from bam_plugin.errors import BamError
from bam_plugin.pictures.imresize import imresize, mod_crop

# `bam` in a process that dies, as by `kill -9`, when the eleventh image has been written and not yet noted.
_KILLED_AFTER_TEN = """
import os, signal, sys
from bam_plugin import cli
from bam_plugin.data.dataset_writer import DatasetWriter
note, count = DatasetWriter._note, []
def dying(self, record):
    note(self, record)
    count.append(record)
    if len(count) == 10:
        store = self._stores["HR"]
        put = store.put
        store.put = lambda entries: (put(entries), os.kill(os.getpid(), signal.SIGKILL))
DatasetWriter._note = dying
cli.main(sys.argv[1:])
"""

QUIET = {"progress": False, "workers": 2}


def read_all(path: Path) -> dict[str, np.ndarray]:
    source = ImageSource(path=path)
    images = {key: source.read(key) for key in source.keys}
    assert all(image.shape[:2] == source.size(key) for key, image in images.items())
    source.close()
    return images


def test_pairs_are_crops_of_the_image_and_of_its_bicubic_lr(tmp_path: Path) -> None:
    image = picture(0, 150, 125)
    path = write(tmp_path / "in/photo.png", image)
    made = prepare_training_set([path], tmp_path / "out", name="T", scales=(2, 3, 4), crop_size=96, step=48, **QUIET)
    assert made.hr.name == "T_HR_sub.lmdb" and made.lr[4].name == "T_LR_bicubic_X4_sub.lmdb"
    whole = mod_crop(image, 12)
    hr = read_all(made.hr)
    # 144 x 120: rows 0, 48; columns 0 and the one flush with the border.
    places = [(0, 0), (0, 24), (48, 0), (48, 24)]
    assert list(hr) == [f"photo_s{number:03d}" for number in (1, 2, 3, 4)] and made.pairs == 4
    for scale, folder in made.lr.items():
        small = imresize(whole, scale=1 / scale)
        for (key, lr), (top, left) in zip(read_all(folder).items(), places, strict=True):
            side = 96 // scale
            np.testing.assert_array_equal(hr[key], whole[top : top + 96, left : left + 96])
            np.testing.assert_array_equal(lr, small[top // scale :, left // scale :][:side, :side])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (made.hr, *made.lr.values())
    )


def test_basicsr_reads_the_lmdb_and_the_folder(tmp_path: Path) -> None:
    from bam_plugin.toolbox import compat

    compat.apply()
    from basicsr.data.paired_image_dataset import PairedImageDataset

    path = write(tmp_path / "in/a.b c.png", picture(1, 130, 130))
    lmdb = prepare_training_set([path], tmp_path / "out", name="T", crop_size=96, step=96, **QUIET)
    folder = prepare_training_set([path], tmp_path / "out", name="F", crop_size=96, step=96, store="folder", **QUIET)
    common = {"phase": "val", "scale": 4}
    items = []
    for made, backend in ((lmdb, "lmdb"), (folder, "disk")):
        roots = {"dataroot_gt": str(made.hr), "dataroot_lq": str(made.lr[4]), "io_backend": {"type": backend}}
        meta = {"meta_info_file": str(tmp_path / "out/meta_info_F_HR_sub_GT.txt")} if backend == "disk" else {}
        dataset = PairedImageDataset({**common, **roots, **meta})
        assert len(dataset) == 4
        items.append(dataset[3])
    assert items[0]["gt"].shape == (3, 96, 96) and items[0]["lq"].shape == (3, 24, 24)
    assert all((items[0][side] == items[1][side]).all() for side in ("gt", "lq"))


def test_odd_files_are_converted_and_bad_ones_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    image = picture(2, 60, 60)
    write(folder / "plain.png", image)
    write(folder / "with.dots.v2.png", image)
    write(folder / "grey.png", image[..., 0])
    write(folder / "alpha.png", np.dstack([image, np.full((60, 60), 7, np.uint8)]))
    write(folder / "deep.png", image.astype(np.uint16) * 257)
    write(folder / "photo.jpg", image)
    write(folder / "Süß €.png", image)
    write(folder / "tiny.png", image[:10, :40])
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image at all")
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:2000])
    arguments = ["prepare", "folder", "--input", str(folder), "--output", str(tmp_path / "out"), "--name", "odd"]
    assert main([*arguments, "--scales", "4", "--whole", "--benchmarks", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "left out: 3 unreadable, 1 too small" in out
    assert all(f"FAILED: {folder / name}" in err for name in ("empty.png", "text.png", "cut.png"))
    assert "notes" not in err and "hidden" not in err
    hr, lr = read_all(tmp_path / "out/odd_HR.lmdb"), read_all(tmp_path / "out/odd_LR_bicubic_X4.lmdb")
    assert set(hr) == set(lr) == {"plain", "with_dots_v2", "grey", "alpha", "deep", "photo", "Su_"}
    for key in ("with_dots_v2", "alpha", "deep", "Su_"):
        np.testing.assert_array_equal(hr[key], hr["plain"])
    np.testing.assert_array_equal(hr["grey"], np.repeat(image[..., :1], 3, axis=2))
    assert main([*arguments, "--scales", "4", "--whole", "--benchmarks", "--quiet"]) == 2
    assert "already there" in capsys.readouterr().err


def test_sixteen_bits_are_rounded_not_cut(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    read = read_image(write(tmp_path / "ramp.png", values), keep_grey=True)
    np.testing.assert_array_equal(read, np.rint(values / 257))


def test_keys_are_plain_and_unique() -> None:
    paths = [
        "a/x.png",
        "b/x.png",
        "c/x.png",
        "c/X.jpg",
        "d/y.z.png",
        "d/y_z.png",
        "e/" + "n" * 400 + ".png",
        "e/日本.png",
    ]
    keys = unique_keys(paths)
    assert len({key.lower() for key in keys.values()}) == len(paths)
    assert keys[Path("a/x.png")] == "a_x"
    for key in keys.values():
        assert key.isascii() and len(key) <= 250 and not set(key) & set(". /")


def test_given_lr_images_are_taken_and_checked(tmp_path: Path) -> None:
    image = picture(3, 96, 96)
    for name in ("0001", "0002"):
        write(tmp_path / f"DIV2K_train_HR/{name}.png", image)
        write(tmp_path / f"DIV2K_train_LR_bicubic/X2/{name}x2.png", np.full((48, 48, 3), 77, np.uint8))
    write(tmp_path / "DIV2K_valid_HR/0801.png", image)
    arguments = ["prepare", "div2k", "--root", str(tmp_path), "--output", str(tmp_path / "out"), "--benchmarks"]
    arguments += ["--scales", "2", "4"]
    assert main([*arguments, "--crop-size", "48", "--step", "48", "--quiet"]) == 0
    out = tmp_path / "out"
    assert all((lr == 77).all() for lr in read_all(out / "DIV2K_train_LR_bicubic_X2_sub.lmdb").values())
    bicubic = imresize(image, scale=1 / 4)
    lr = read_all(out / "DIV2K_train_LR_bicubic_X4_sub.lmdb")
    assert list(lr) == list(read_all(out / "DIV2K_train_HR_sub.lmdb")) and len(lr) == 8
    np.testing.assert_array_equal(lr["0001_s001"], bicubic[:12, :12])
    np.testing.assert_array_equal(read_all(out / "DIV2K_valid_LR_bicubic_X4.lmdb")["0801"], bicubic)
    assert main([*arguments, "--crop-size", "48", "--step", "48", "--quiet"]) == 2

    write(tmp_path / "DIV2K_train_LR_bicubic/X2/0002x2.png", np.zeros((47, 48, 3), np.uint8))
    train, _ = prepare_div2k(tmp_path, tmp_path / "again", scales=(2,), crop_size=48, step=48, **QUIET)
    assert train.pairs == 4 and "47x48, expected 48x48" in train.left_out.failed[0][1]
    (tmp_path / "DIV2K_train_LR_bicubic/X2/0002x2.png").unlink()
    with pytest.raises(BamError, match=r"0002x2\.png"):
        prepare_div2k(tmp_path, tmp_path / "third", scales=(2,), **QUIET)
    with pytest.raises(BamError, match="DIV2K_train_HR"):
        prepare_div2k(tmp_path / "third", tmp_path, **QUIET)


def test_killed_run_is_resumed_and_never_taken_for_whole(tmp_path: Path) -> None:
    for number in range(25):
        write(tmp_path / f"in/{number:02d}.png", picture(number, 96, 96))
    out = tmp_path / "out"
    arguments = ["prepare", "folder", "--input", str(tmp_path / "in"), "--output", str(out), "--name", "T"]
    arguments += ["--scales", "4", "--whole", "--benchmarks", "--workers", "2"]
    process = subprocess.run([sys.executable, "-c", _KILLED_AFTER_TEN, *arguments], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    journal = out / ".T.partial/journal.jsonl"
    done = journal.read_text().count("\n")
    assert done == 10
    assert not list(out.glob("*.lmdb"))
    # As a kill in the middle of a write leaves it; and an entry that the journal names but the LMDB lost.
    with journal.open("a") as file:
        file.write(json.dumps({"source": "lost", "entries": {"HR": [["no_such_key", 1, 1, 3]], "X4": []}}) + "\n")
        file.write('{"source": "to')
    seen: list[str] = []
    make_pairs = prepare_module.make_pairs

    def counting(image, key, **options):
        seen.append(key)
        return make_pairs(image, key, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "make_pairs", counting)
        images = sorted((tmp_path / "in").iterdir())
        made = prepare_training_set(images, out, name="T", scales=(4,), crop_size=None, **QUIET)
    assert made.pairs == 25 and len(seen) <= 25 - done
    hr = read_all(made.hr)
    assert len(hr) == len(read_all(made.lr[4])) == 25
    for number in (0, 10, 24):
        np.testing.assert_array_equal(hr[f"{number:02d}"], picture(number, 96, 96))
    assert not (out / ".T.partial").exists()


def test_kill_between_the_moves_is_completed(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"in/{number}.png", picture(number, 48, 48)) for number in range(3)]
    replace = Path.replace

    def fail_at_second(self: Path, target: Path) -> Path:
        if Path(target).name == "T_LR_bicubic_X4.lmdb":
            raise KeyboardInterrupt
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", fail_at_second)
        prepare_training_set(paths, tmp_path / "out", name="T", crop_size=None, **QUIET)
    assert not (tmp_path / "out/T_LR_bicubic_X4.lmdb").exists()
    made = prepare_training_set(paths, tmp_path / "out", name="T", crop_size=None, **QUIET)
    assert made.pairs == 3 and len(read_all(made.hr)) == len(read_all(made.lr[4])) == 3


def test_refuses_other_settings_second_job_and_existing_results(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"in/{number}.png", picture(number, 48, 48)) for number in range(2)]
    outputs = {"HR": tmp_path / "T_HR.lmdb"}
    first = DatasetWriter(work=tmp_path / ".T.partial", outputs=outputs, settings={"a": 1})
    with first, pytest.raises(StorageError, match="another run"):
        DatasetWriter(work=tmp_path / ".T.partial", outputs=outputs, settings={"a": 1})
    with pytest.raises(StorageError, match="other images or settings"):
        prepare_training_set(paths, tmp_path, name="T", crop_size=None, **QUIET)
    made = prepare_training_set(paths, tmp_path, name="U", crop_size=None, **QUIET)
    before = (made.hr / "data.mdb").read_bytes()
    with pytest.raises(AlreadyPreparedError, match=r"U_HR\.lmdb"):
        prepare_training_set(paths, tmp_path, name="U", crop_size=None, **QUIET)
    assert (made.hr / "data.mdb").read_bytes() == before


def test_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in/a.png", picture(0, 96, 96))
    usage = type("Usage", (), {"free": 20_000})
    monkeypatch.setattr("bam_plugin.data.storage.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match="GB are needed"):
        prepare_training_set([path], tmp_path / "out", crop_size=None, **QUIET)
    assert not (tmp_path / "out").exists()


def test_map_size_holds_incompressible_images(tmp_path: Path) -> None:
    # Noise grows under PNG: the computed map size must hold it, here beyond LMDB's default of 10 MB.
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    paths = [write(tmp_path / f"in/{number}.png", noise) for number in range(8)]
    made = prepare_training_set(paths, tmp_path / "out", crop_size=240, step=120, **QUIET)
    assert made.pairs == 8 * 16
    assert (made.hr / "data.mdb").stat().st_size > 20 << 20
    close_lmdb(made.hr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 100}, "multiples of 12"),
        ({"crop_size": 48, "step": 96}, "step <= crop size"),
        ({"scales": (1,)}, "scales of at least 2"),
        ({"scales": ()}, "scales of at least 2"),
        ({"store": "zip"}, "lmdb or folder"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict, message: str) -> None:
    path = write(tmp_path / "a.png", picture(0, 48, 48))
    with pytest.raises(BamError, match=message):
        prepare_training_set([path], tmp_path / "out", **{**QUIET, **options})


def test_no_usable_image_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(BamError, match="none of the 1 images is usable"):
        prepare_training_set([tmp_path / "bad.png"], tmp_path / "out", **QUIET)
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(BamError, match="at least one image"):
        prepare_training_set([], tmp_path / "out", **QUIET)


def test_classic_sets_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("T91/t1", "BSDS400/train/7", "BSDS400/test/7", "DIV2K_valid_crop256/0801")):
        write(tmp_path / f"sets/{name}.png", picture(number, 50, 61))
    assert main(["prepare", "classic", "--root", "sets", "--quiet"]) == 0
    assert "3 pairs" in capsys.readouterr().out
    training = tmp_path / "datasets/classic"
    assert sorted(read_all(training / "classic_HR.lmdb")) == ["t1", "test_7", "train_7"]
    for scale in (2, 3, 4):
        lr = read_all(training / f"classic_LR_bicubic_X{scale}.lmdb")
        assert lr["t1"].shape == (48 // scale, 60 // scale, 3)
        assert (tmp_path / f"datasets/DIV2K_valid_crop256/LRbicx{scale}/0801.png").is_file()
    shutil.rmtree(training)
    assert main(["prepare", "classic", "--root", "sets", "--quiet"]) == 0, "what is there is passed over"
    assert main(["prepare", "classic", "--root", "sets", "--quiet"]) == 2
    assert main(["prepare", "classic", "--root", "datasets", "--quiet"]) == 2


def test_preparing_imports_no_torch() -> None:
    modules = (
        "pictures.imresize",
        "data.prepare",
        "data.benchmarks",
        "data.overlap",
        "pictures.sheet",
        "train.report",
        "commands.prepare",
    )
    code = "".join(f"import bam_plugin.{name}\n" for name in modules) + "import sys\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cut_jpeg_is_refused_and_appended_data_is_not(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jpg", picture(5, 80, 80)).read_bytes()
    for part in (0.5, 0.9, 0.999):
        (tmp_path / "cut.jpg").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(BamError, match=r"cut\.jpg"):
            read_image(tmp_path / "cut.jpg")
    # As the video behind a phone's motion photo, which may hold the bytes of a marker.
    (tmp_path / "more.jpg").write_bytes(whole + b"video \xff\xda video")
    np.testing.assert_array_equal(read_image(tmp_path / "more.jpg"), read_image(tmp_path / "whole.jpg"))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # the picture's top is at the right of the file
    Image.fromarray(cv2.cvtColor(picture(4, 48, 96), cv2.COLOR_BGR2RGB)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (96, 48, 3)


def test_says_that_nothing_was_compared_where_there_is_no_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos/one.png", picture(1, 64, 64))
    command = ["prepare", "folder", "--input", "photos", "--scales", "4", "--whole", "--quiet", "--name"]
    assert main([*command, "one"]) == 0
    assert "no benchmarks found" in capsys.readouterr().err
    assert main([*command, "two", "--benchmarks"]) == 0
    assert "no benchmarks found" not in capsys.readouterr().err


def test_a_kill_at_the_very_end_loses_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "photos/one.png", picture(1, 48, 48))
    arguments: dict = {"images": [tmp_path / "photos/one.png"], "root": tmp_path / "out", "name": "T"}
    arguments |= {"store": "folder", "crop_size": None, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_training_set(**arguments)
    assert (tmp_path / "out/meta_info_T_HR_GT.txt").read_text() == "one.png (48,48,3)\n"
    # The same command tidies up and says what it made.
    assert prepare_training_set(**arguments).pairs == 1
    assert not list((tmp_path / "out").glob(".*"))
