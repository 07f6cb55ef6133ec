"""Checking of expanded options before anything starts: every section, every key, and the folders they name.

`find_problems` returns all mistakes at once. What is valid comes from three places: the typed sections of `schema.py`,
the signatures of the registered networks, losses, metrics, optimizers and schedulers, and the options that a registered
model or dataset reads in its source.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from bam_plugin import _compat
from bam_plugin.config.data import check_datasets, check_paths
from bam_plugin.config.problems import KeyPath, Problem, suggest
from bam_plugin.config.schema import (
    PATH_KEYS,
    SECTIONS,
    Distributed,
    Logger,
    Options,
    Train,
    ValidationInTest,
    ValidationInTraining,
)
from bam_plugin.config.signatures import check_struct, check_typed
from bam_plugin.config.sources import keys_read_by

# What BasicSR's SRModel and its relatives call these functions with, besides the options.
_METRIC_INPUTS = ("img", "img2")
_OPTIMIZER_INPUTS = ("params",)
_SCHEDULER_INPUTS = ("optimizer", "last_epoch")
# What BasicSR's parser writes into the options and its classes read back; nothing that a file may set.
_INTERNAL = {"auto_resume", "dist", "is_train", "rank", "root_path", "world_size"}
_INTERNAL_PATHS = {"experiments_root", "log", "models", "results_root", "training_states", "visualization"}


def find_problems(options: Mapping[str, Any], *, is_train: bool, files: bool = True) -> list[Problem]:
    """All mistakes in expanded options, for a training or a test.

    `files`: check that the named folders, LMDBs and checkpoints exist, relative to the current directory. Imports the
    registries, not the data; builds the network on the meta device, which costs no memory.
    """
    _register_everything()
    return list(_check(options, is_train, files))


def _register_everything() -> None:
    _compat.require_basicsr()
    for name in ("basicsr.data", "basicsr.losses", "basicsr.metrics", "bam_plugin.archs", "bam_plugin.models"):
        importlib.import_module(name)


def _check(options: Mapping[str, Any], is_train: bool, files: bool) -> Iterator[Problem]:
    from basicsr.utils.registry import MODEL_REGISTRY

    models = dict(iter(MODEL_REGISTRY))
    model = models.get(_strip(options.get("model_type"), models))
    reads = keys_read_by(model) if model else {}
    top = {key for key in options if key.startswith("network_")} | reads.get("", frozenset())
    top -= _INTERNAL
    yield from check_struct(options, Options, (), also=top, elsewhere=_place_of)
    if model is None and isinstance(options.get("model_type"), str):
        yield Problem(
            ("model_type",), f"{options['model_type']} is not registered; {suggest(options['model_type'], models)}"
        )
    for name, network in options.items():
        if name.startswith("network_"):
            yield from check_network(network, (name,))
    if isinstance(options.get("datasets"), Mapping):
        yield from check_datasets(options, is_train=is_train, files=files, elsewhere=_place_of)
    if isinstance(options.get("path"), Mapping):
        letters = {name.removeprefix("network_") for name in options if name.startswith("network_")}
        names = {key.removesuffix("_g") + f"_{letter}" for key in PATH_KEYS if key.endswith("_g") for letter in letters}
        names |= {*PATH_KEYS, *reads.get("path", frozenset())} - _INTERNAL_PATHS
        yield from check_paths(options["path"], names, files=files, elsewhere=_place_of)
    yield from _check_sections(options, is_train, reads)
    if is_train and isinstance(options.get("train"), Mapping):
        yield from _check_training(options["train"], reads.get("train", frozenset()))
    if isinstance(options.get("val"), Mapping):
        yield from _check_metrics(options["val"].get("metrics"))
        silent = is_train or model is None or not model.__module__.startswith("basicsr.")
        if options["val"].get("save_img") and "suffix" not in options["val"] and not silent:
            yield Problem(("val", "suffix"), f"is missing; {options['model_type']} needs it with save_img: write ~")
    yield from _check_device(options.get("num_gpu"))


def _check_sections(options: Mapping[str, Any], is_train: bool, reads: dict[str, frozenset[str]]) -> Iterator[Problem]:
    """Sections that must or may be there, and their keys."""
    structs: dict[str, type] = {"dist_params": Distributed}
    if is_train:
        structs.update(train=Train, logger=Logger, val=ValidationInTraining)
        required = ("train", "logger")
    else:
        structs.update(val=ValidationInTest)
        required = ("val",)
    for name, struct in structs.items():
        section = options.get(name)
        if isinstance(section, Mapping):
            yield from check_struct(section, struct, (name,), also=reads.get(name, ()), elsewhere=_place_of)
        elif name in required:
            yield Problem((name,), f"this section is missing; a {'training' if is_train else 'test'} needs it")


def check_network(values: Any, key: KeyPath) -> Iterator[Problem]:
    """Check one network section (and a `host` inside it): type, arguments, and a construction without memory.

    The networks must be registered before, by importing bam_plugin.archs and basicsr.archs.
    """
    from basicsr.utils.registry import ARCH_REGISTRY

    archs = dict(iter(ARCH_REGISTRY))
    if isinstance(values, Mapping) and isinstance(values.get("type"), str):
        values = {**values, "type": _strip(values["type"], archs)}
    problems = list(check_typed(values, key, archs, elsewhere=_place_of))
    if isinstance(values, Mapping) and isinstance(values.get("host"), Mapping):
        problems += check_network(values["host"], (*key, "host"))
    yield from problems
    if not problems:
        yield from _check_construction(archs[values["type"]], values, key)


def _check_construction(arch: Any, values: Mapping[str, Any], key: KeyPath) -> Iterator[Problem]:
    """Build one of our networks without memory: its constructor knows which values go together."""
    import torch

    if not arch.__module__.startswith("bam_plugin."):
        return
    try:
        with torch.device("meta"):
            arch(**{name: value for name, value in values.items() if name != "type"})
    except NotImplementedError:
        # An operation that needs values: the real construction will tell.
        return
    except Exception as error:
        yield Problem(key, f"{values['type']} cannot be built from these options: {error}")


def _check_training(train: Mapping[str, Any], reads: frozenset[str]) -> Iterator[Problem]:
    from basicsr.models import lr_scheduler
    from basicsr.utils.registry import LOSS_REGISTRY

    optimizers = _optimizers()
    for name, value in train.items():
        key = ("train", name)
        known_name = name in reads or name in ("pixel_opt", "perceptual_opt", "optim_g")
        if name.startswith("optim_") and known_name:
            yield from check_typed(value, key, optimizers, given=_OPTIMIZER_INPUTS, elsewhere=_place_of)
        elif name.endswith("_opt") and known_name and isinstance(value, Mapping) and "type" in value:
            yield from check_typed(value, key, dict(iter(LOSS_REGISTRY)), elsewhere=_place_of)
    if "pixel_opt" in reads and not (train.get("pixel_opt") or train.get("perceptual_opt")):
        yield Problem(("train", "pixel_opt"), "is missing; a training needs a loss, such as {type: L1Loss}")
    schedulers = {
        name: scheduler
        for name, scheduler in vars(lr_scheduler).items()
        if inspect.isclass(scheduler) and name.endswith("RestartLR")
    }
    schedulers["MultiStepLR"] = lr_scheduler.MultiStepRestartLR
    scheduler = train.get("scheduler")
    problems = list(
        check_typed(scheduler, ("train", "scheduler"), schedulers, given=_SCHEDULER_INPUTS, elsewhere=_place_of)
    )
    yield from problems
    if not problems and isinstance(scheduler, Mapping):
        yield from _check_periods(scheduler, train.get("total_iter"))


def _check_periods(scheduler: Mapping[str, Any], total_iter: Any) -> Iterator[Problem]:
    """Lengths that crash or silently change a schedule in the middle of a training."""
    key = ("train", "scheduler")
    pairs = (("periods", [1]), ("restarts", [0]))
    for name, default in pairs:
        weights = scheduler.get("restart_weights", [1])
        values = scheduler.get(name, default)
        if name in scheduler and isinstance(values, list) and isinstance(weights, list) and len(values) != len(weights):
            yield Problem(
                (*key, "restart_weights"), f"has {len(weights)} values for the {len(values)} of {name}; give one each"
            )
    periods = scheduler.get("periods")
    if not isinstance(total_iter, int):
        return
    periods = [period for period in periods if isinstance(period, (int, float))] if isinstance(periods, list) else []
    if periods and sum(periods) < total_iter:
        yield Problem(
            (*key, "periods"),
            f"sum to {sum(periods)}, but train.total_iter is {total_iter}: the training would crash there; make them "
            f"sum to {total_iter}, or set train.total_iter to {sum(periods)}",
        )
    milestones = scheduler.get("milestones")
    if isinstance(milestones, list):
        late = [each for each in milestones if isinstance(each, int) and each > total_iter]
        if late and len(late) == len(milestones):
            yield Problem(
                (*key, "milestones"),
                f"all of {milestones} lie after train.total_iter {total_iter}: the rate would never fall; lower them, "
                "or write milestones: []",
            )


def _check_metrics(metrics: Any) -> Iterator[Problem]:
    from basicsr.utils.registry import METRIC_REGISTRY

    if not isinstance(metrics, Mapping):
        return
    for name, metric in metrics.items():
        yield from check_typed(
            metric,
            ("val", "metrics", name),
            dict(iter(METRIC_REGISTRY)),
            given=_METRIC_INPUTS,
            also=("better",),
            # calculate_psnr(**kwargs) ignores what it does not know: a misspelt test_y_channel changes the numbers.
            swallowed=True,
            elsewhere=_place_of,
        )
        if isinstance(metric, Mapping) and metric.get("better", "higher") not in ("higher", "lower"):
            yield Problem(("val", "metrics", name, "better"), f"must be higher or lower, found {metric['better']!r}")


def _check_device(num_gpu: Any) -> Iterator[Problem]:
    import torch

    present = torch.cuda.device_count()
    if isinstance(num_gpu, int) and not isinstance(num_gpu, bool) and num_gpu > present:
        yield Problem(
            ("num_gpu",),
            f"is {num_gpu}, but torch sees {present or 'no'} GPU{'s' if present > 1 else ''}; set it to {present}"
            + ("" if present else " to use the CPU")
            + f", for one run by --force_yml num_gpu={present}",
        )


def _optimizers() -> dict[str, Any]:
    import torch

    optimizers: dict[str, Any] = {
        name: optimizer
        for name, optimizer in vars(torch.optim).items()
        if inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer)
    }
    optim = importlib.import_module("bam_plugin.optim")
    optimizers.update(dict(iter(getattr(optim, "OPTIMIZER_REGISTRY", ()))))
    return optimizers


def _place_of(name: str) -> str | None:
    """The section where `name` is a valid key, or None. Names that several sections know have no place of their own."""
    places = [section for section, struct in SECTIONS.items() if name in struct.__struct_fields__]
    places += [section for section, names in _ARGUMENT_PLACES.items() if name in names]
    if name in PATH_KEYS:
        places.append("path")
    return places[0] if len(places) == 1 else None


_ARGUMENT_PLACES: dict[str, tuple[str, ...]] = {
    "train.optim_g": ("lr", "betas", "weight_decay", "eps"),
    "train.scheduler": ("periods", "restart_weights", "milestones", "gamma", "eta_min"),
    "val.metrics.*": ("crop_border", "test_y_channel", "better"),
    "network_g": ("upscale", "num_feat", "num_in_ch", "num_out_ch"),
}


def _strip(name: Any, registered: Mapping[str, Any]) -> Any:
    """BasicSR's registries add a suffix to names that a plugin took first; both names are valid."""
    if isinstance(name, str) and name not in registered and f"{name}_basicsr" in registered:
        return f"{name}_basicsr"
    return name
