"""Check expanded options before anything starts: every section, every key, and the folders that they name.

`find_problems` returns all mistakes at once. Three places say what is valid: the typed sections of `schema.py`,
the signatures of the registered networks, losses, metrics, optimizers and schedulers, and the options that a registered
model or dataset reads in its source.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from bam_plugin.config.binarizers import check_binarizers
from bam_plugin.config.data import check_checkpoint, check_datasets, check_paths
from bam_plugin.config.loader import IMPORT_KEY
from bam_plugin.config.problems import KeyPath, Problem
from bam_plugin.config.schema import (
    PATH_KEYS,
    SECTIONS,
    BinaryTrain,
    Distributed,
    Logger,
    Options,
    Train,
    ValidationInTest,
    ValidationInTraining,
)
from bam_plugin.config.signatures import check_call, check_struct, check_typed
from bam_plugin.config.sources import keys_read_by
from bam_plugin.config.training import check_training, in_iterations
from bam_plugin.errors import suggest
from bam_plugin.toolbox.registration import register_everything

# BasicSR's models pass these to metrics, besides the options.
_METRIC_INPUTS = ("img", "img2")
# BasicSR's parser writes these into the options, and its classes read them. A file may not set them.
_INTERNAL = {"auto_resume", "dist", "is_train", "rank", "root_path", "world_size"}
_INTERNAL_PATHS = {"experiments_root", "log", "models", "results_root", "training_states", "visualization"}


def find_problems(options: Mapping[str, Any], *, is_train: bool, files: bool = True) -> list[Problem]:
    """All mistakes in expanded options, for a training or a test.

    `files`: check that the named folders, LMDBs and checkpoints exist, relative to the current directory. It imports
    the registries and not the data. It builds the network on the meta device, which costs no memory.
    """
    register_everything()
    return list(_check(options, is_train, files))


def _check(options: Mapping[str, Any], is_train: bool, files: bool) -> Iterator[Problem]:
    from basicsr.utils.registry import MODEL_REGISTRY

    from bam_plugin.toolbox.networks import registered_name

    models = dict(iter(MODEL_REGISTRY))
    model = models.get(registered_name(options.get("model_type"), models))
    reads = keys_read_by(model) if model else {}
    top = {key for key in options if key.startswith("network_")} | reads.get("", frozenset())
    top = (top | {IMPORT_KEY}) - _INTERNAL
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
    ours = _is_ours(model)
    train = options.get("train")
    if is_train and isinstance(train, Mapping):
        if ours:
            train, problems = in_iterations(train)
            yield from problems
            options = {**options, "train": train}
            yield from _check_teacher(train.get("distill"), files)
        yield from check_training(train, reads.get("train", frozenset()), ours=ours, elsewhere=_place_of)
    yield from _check_sections(options, is_train, reads, BinaryTrain if ours else Train)
    if isinstance(options.get("val"), Mapping):
        yield from _check_metrics(options["val"].get("metrics"))
        silent = is_train or ours or model is None
        if options["val"].get("save_img") and "suffix" not in options["val"] and not silent:
            yield Problem(("val", "suffix"), f"is missing; {options['model_type']} needs it with save_img: write ~")
    if is_train and isinstance(options.get("logger"), Mapping):
        yield from _check_wandb(options["logger"])
    yield from _check_device(options.get("num_gpu"))


def _check_wandb(logger: Mapping[str, Any]) -> Iterator[Problem]:
    """Weights & Biases is asked for by a project's name; BasicSR then needs the package, and TensorBoard beside it."""
    section = logger.get("wandb")
    if not isinstance(section, Mapping) or section.get("project") is None:
        return
    if logger.get("use_tb_logger") is False:
        yield Problem(("logger", "use_tb_logger"), "must be true beside logger.wandb, or remove wandb.project")
    elif importlib.util.find_spec("wandb") is None:
        message = "needs the package wandb, which is not installed; run: pip install wandb, or remove the project"
        yield Problem(("logger", "wandb", "project"), message)


def _check_sections(
    options: Mapping[str, Any], is_train: bool, reads: dict[str, frozenset[str]], train: type[Train]
) -> Iterator[Problem]:
    """Check which sections are there, and their keys."""
    structs: dict[str, type] = {"dist_params": Distributed}
    if is_train:
        structs.update(train=train, logger=Logger, val=ValidationInTraining)
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


def _check_teacher(distill: Any, files: bool) -> Iterator[Problem]:
    if isinstance(distill, Mapping) and {"network", "path"} <= set(distill):
        yield from check_network(distill["network"], ("train", "distill", "network"))
        yield from check_checkpoint(distill["path"], ("train", "distill", "path"), files=files)


def check_network(values: Any, key: KeyPath) -> Iterator[Problem]:
    """Check one network section (and the `host` and `recipe` inside it): type, arguments, and that it can be built.

    It imports the modules that register networks.
    """
    from bam_plugin.nn.mixing.swap import Recipe
    from bam_plugin.toolbox.networks import registered_name, registered_networks

    archs = registered_networks()
    if isinstance(values, Mapping) and isinstance(values.get("type"), str):
        values = {**values, "type": registered_name(values["type"], archs)}
    problems = list(check_typed(values, key, archs, elsewhere=_place_of))
    if isinstance(values, Mapping) and isinstance(values.get("host"), Mapping):
        problems += check_network(values["host"], (*key, "host"))
        if isinstance(values.get("recipe"), Mapping):
            problems += check_call(Recipe, values["recipe"], (*key, "recipe"))
            problems += check_binarizers(values["recipe"], Recipe, (*key, "recipe"))
    if isinstance(values, Mapping) and _is_ours(arch := archs.get(str(values.get("type")))):
        problems += check_binarizers(values, arch, key)
        problems += _check_alpha(values, key)
    yield from problems
    if not problems:
        yield from _check_construction(archs[values["type"]], values, key)


def _check_alpha(values: Mapping[str, Any], key: KeyPath) -> Iterator[Problem]:
    """`alpha` of BSRN is for accumulated filters. Other binarizers of weights would ignore it."""
    from bam_plugin.nn import METHODS, WEIGHT_BINARIZERS

    method = METHODS.get(str(values.get("binarizer", "bam")))
    name = values.get("weight_binarizer") or (method.weight if method else None)
    weights = WEIGHT_BINARIZERS.get(str(name))
    if values.get("alpha", "one") != "one" and weights and "alpha" not in inspect.signature(weights).parameters:
        yield Problem((*key, "alpha"), f"is not read with weights {name!r}, which are not accumulated; remove it")


def _is_ours(registered: Any) -> bool:
    return registered is not None and registered.__module__.startswith("bam_plugin.")


def _check_construction(arch: Any, values: Mapping[str, Any], key: KeyPath) -> Iterator[Problem]:
    """Build one of our networks, whose constructor knows which values go together. Random states stay as they are."""
    import torch

    if not _is_ours(arch):
        return
    arguments = {name: value for name, value in values.items() if name != "type"}
    try:
        with torch.device("meta"):
            arch(**arguments)
    except Exception:
        # The options are wrong, or the constructor looks at values, which the meta device does not have.
        try:
            with torch.random.fork_rng(devices=[]):
                arch(**arguments)
        except Exception as error:
            yield Problem(key, f"{values['type']} cannot be built from these options: {error}")


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
            # calculate_psnr(**kwargs) ignores unknown keys, so a misspelt test_y_channel would change the numbers.
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


def _place_of(name: str) -> str | None:
    """The section where `name` is a valid key, or None. A name that several sections know has no place of its own."""
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
