"""Check the sections datasets and path: their keys, and the folders, LMDBs and checkpoints that they name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from bam_plugin.config.problems import KeyPath, Problem
from bam_plugin.config.schema import Dataset
from bam_plugin.config.signatures import check_struct, check_value, unknown_key
from bam_plugin.config.sources import keys_read_by
from bam_plugin.errors import nearest, suggest

_PHASES = {True: ("train", "val"), False: ("test", "val")}
_LOADER = ("num_worker_per_gpu", "batch_size_per_gpu")
# Dataset -> the keys that it needs: always, and in a training.
_REQUIRED = {
    "PairedImageDataset": (("dataroot_gt", "dataroot_lq", "io_backend"), ("gt_size", "use_hflip", "use_rot")),
    "PairedPatchDataset": (("dataroot_gt", "dataroot_lq"), ("gt_size",)),
    "BenchmarkDataset": (("dataroot_gt", "dataroot_lq"), ()),
}


def check_datasets(
    options: Mapping[str, Any], *, is_train: bool, files: bool, elsewhere: Callable[[str], str | None]
) -> Iterator[Problem]:
    """Check the section datasets: phases, keys, and with `files` the folders and files that they name."""
    datasets = options["datasets"]
    phases = _PHASES[is_train]
    for name, values in datasets.items():
        key = ("datasets", name)
        phase = name.split("_")[0]
        if phase not in phases:
            expected = "train, val or val_N" if is_train else "test_N or val_N"
            kind = "training" if is_train else "test"
            yield Problem(key, f"a {kind} has no such dataset; expected {expected}")
        elif not isinstance(values, Mapping):
            yield Problem(key, f"must be a mapping, found {values!r}")
        else:
            yield from _check_dataset(values, key, phase, options.get("scale"), elsewhere)
            if files:
                yield from check_data_files(values, key)
    if not any(name.split("_")[0] == phases[0] for name in datasets) and (is_train or not datasets):
        yield Problem(("datasets", phases[0]), "is missing; a dataset needs it")


def _check_dataset(
    values: Mapping[str, Any], key: KeyPath, phase: str, scale: Any, elsewhere: Callable[[str], str | None]
) -> Iterator[Problem]:
    from basicsr.utils.registry import DATASET_REGISTRY

    registered = dict(iter(DATASET_REGISTRY))
    name = values.get("type")
    dataset = registered.get(name, registered.get(f"{name}_basicsr"))
    if dataset is None and isinstance(name, str):
        yield Problem((*key, "type"), f"{name} is not a registered dataset; {suggest(name, registered)}")
    reads = keys_read_by(dataset) if dataset is not None else {}
    # A dataset gets its own part of the file as `opt`, so its keys have no section.
    yield from check_struct(values, Dataset, key, also=reads.get("", ()), elsewhere=elsewhere)
    always, in_training = _REQUIRED.get(str(name), ((), ()))
    for each in (*always, *in_training, *_LOADER) if phase == "train" else always:
        if values.get(each) is None:
            yield Problem((*key, each), f"is missing; {name} needs it for phase {phase}")
    gt_size = values.get("gt_size")
    if isinstance(gt_size, int) and isinstance(scale, int) and scale > 0 and gt_size % scale:
        yield Problem(
            (*key, "gt_size"),
            f"{gt_size} is not a multiple of scale {scale}; LR patches are gt_size / scale: use "
            f"{gt_size // scale * scale or scale}",
        )
    if values.get("prefetch_mode") == "cuda" and values.get("pin_memory") is not True:
        yield Problem((*key, "pin_memory"), "must be true with prefetch_mode: cuda")


def check_data_files(values: Mapping[str, Any], key: KeyPath) -> Iterator[Problem]:
    """Check that the folders and LMDBs of one dataset exist and are of the kind that its io_backend reads."""
    backend = values.get("io_backend")
    # The datasets of this package see from the path whether it is a folder or an LMDB.
    ours = values.get("type") in ("PairedPatchDataset", "BenchmarkDataset")
    backend = backend.get("type") if isinstance(backend, Mapping) and not ours else None
    for name in ("dataroot_gt", "dataroot_lq"):
        root = values.get(name)
        if isinstance(root, str):
            yield from _check_root(Path(root).expanduser(), (*key, name), backend)
    listing = values.get("meta_info_file")
    if isinstance(listing, str) and not Path(listing).is_file():
        yield Problem((*key, "meta_info_file"), f"{listing} is not a file{_near_file(Path(listing))}")


def _check_root(root: Path, key: KeyPath, backend: Any) -> Iterator[Problem]:
    if not root.is_dir():
        yield Problem(
            key,
            f"the folder {root} does not exist (looked in {Path.cwd()}){_near_file(root)}; make it with "
            f"`{_command_for(root, key)}`, or name the folder you have",
        )
    elif backend == "lmdb":
        if root.suffix != ".lmdb":
            yield Problem(
                key, f"{root} must end in .lmdb for io_backend type lmdb; use type disk for a folder of images"
            )
        elif not (root / "meta_info.txt").is_file():
            yield Problem(key, f"{root} holds no meta_info.txt, so it is not a whole LMDB; make it again")
    elif backend == "disk" and root.suffix == ".lmdb":
        yield Problem(key, f"{root} is an LMDB, but io_backend type is disk; set it to lmdb")


def _command_for(root: Path, key: KeyPath) -> str:
    """The command that makes the folder `root`, by the names of the sets, else by what the data set is for."""
    parts = set(root.parts)
    if parts & {"classic", "DIV2K_valid_crop256"}:
        return "bam prepare classic --root FOLDER_WITH_T91_ETC"
    if "DIV2K" in parts:
        return "bam prepare div2k --root DOWNLOADS"
    if key[1].startswith(("val", "test")):
        return "bam prepare benchmark --root FOLDER_WITH_SET5_ETC"
    return "bam prepare folder --input PHOTOS --name NAME"


def check_paths(
    paths: Mapping[str, Any], names: Collection[str], *, files: bool, elsewhere: Callable[[str], str | None]
) -> Iterator[Problem]:
    """Check the section path: BasicSR makes a folder of every key that it does not know."""
    for name, value in paths.items():
        key = ("path", name)
        if name not in names:
            yield unknown_key(key, names, elsewhere)
        elif name.startswith("strict_load"):
            yield from check_value(value, bool, key)
        elif name.startswith("param_key"):
            yield from check_value(value, str, key)
        elif name == "ignore_resume_networks":
            yield from check_value(value, list[str] | str | None, key)
        elif value is not None:
            yield from check_checkpoint(value, key, files=files)


def check_checkpoint(value: Any, key: KeyPath, *, files: bool) -> Iterator[Problem]:
    """Check that `value` names a file, and with `files` that the file exists."""
    if not isinstance(value, str):
        yield Problem(key, f"must name a file or be empty (~), found {value!r}")
    elif files and not Path(value).expanduser().is_file():
        near = _near_file(Path(value))
        yield Problem(
            key, f"{value} is not a file (looked in {Path.cwd()}){near}; train first, or name the checkpoint you have"
        )


def _near_file(path: Path) -> str:
    """`; did you mean X?` with a file beside it that has a similar name."""
    try:
        names = [entry.name for entry in path.expanduser().parent.iterdir()]
    except OSError:
        return ""
    near = nearest(path.name, names)
    return f"; did you mean {path.parent / near}?" if near else ""
