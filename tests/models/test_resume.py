"""Real trainings on the CPU through BasicSR's pipeline: exact resume, signals, crashes, whole files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import training_options
from helpers.training_runs import assert_same, assert_same_checkpoint, damage

from bam_plugin.errors import BamError
from bam_plugin.models.checkpoint import save_atomically
from bam_plugin.models.session import TrainingInterruptedError, TrainingStartError
from bam_plugin.models.watch import TrainingPlateauError
from bam_plugin.optim.errors import OptimizerError
from bam_plugin.toolbox import compat
from bam_plugin.toolbox.networks import CheckpointError
from bam_plugin.toolbox.resuming import saved_states
from bam_plugin.train.training import main, train

compat.apply()

from basicsr.utils.registry import ARCH_REGISTRY  # noqa: E402

import bam_plugin.archs  # noqa: E402, F401


@ARCH_REGISTRY.register()
class IncidentBSRN(ARCH_REGISTRY.get("BSRN")):
    """BSRN that, once per process, raises an error or gets a signal in a given training iteration."""

    incident: tuple[int, str] | None = None

    def forward(self, x):
        out = super().forward(x)
        if self.training and IncidentBSRN.incident is not None:
            remaining, kind = IncidentBSRN.incident
            IncidentBSRN.incident = (remaining - 1, kind) if remaining > 1 else None
            if remaining == 1 and kind == "error":
                raise MemoryError("no more memory")
            if remaining == 1:
                os.kill(os.getpid(), getattr(signal, kind))
        return out


def options(pairs, **changes):
    network = changes.pop("network", {})
    train_changes = {
        "optim_g": {"type": "BinaryAdam", "lr": 0.003, "weight_decay": 0.01, "lr_mult": {"latent": 0.5}},
        "scheduler": {"type": "CosineLR"},
        "warmup_iter": 4,
        "accumulate": 2,
        "grad_clip": 0.5,
        "health_freq": 3,
        "watch": {"nonfinite": "skip", "plateau": "warn", "plateau_window": 3, "plateau_patience": 1},
        **changes.pop("train", {}),
    }
    result = training_options.tiny_options(pairs, **train_changes)
    result["network_g"] = network if "type" in network else {**result["network_g"], "type": "IncidentBSRN", **network}
    result["datasets"]["train"].update(changes.pop("dataset", {}))
    return {**result, **changes}


@pytest.fixture(autouse=True)
def _no_incident():
    IncidentBSRN.incident = None
    yield
    IncidentBSRN.incident = None


@pytest.mark.parametrize(
    ("dataset", "train_changes", "network"),
    [
        pytest.param({}, {}, {}, id="main process"),
        pytest.param(
            {"num_worker_per_gpu": 2, "persistent_workers": True},
            {"optim_g": {"type": "Adam", "lr": 0.001}, "scheduler": {"type": "MultiStepLR", "milestones": [12]}},
            {"activation_estimator": "ede"},
            id="workers, progressive estimator",
        ),
        pytest.param(
            {"type": "PairedImageDataset"},
            {"precision": "bf16", "ema_bn": "reestimate", "ema_bn_freq": 3},
            {},
            id="global random state, statistics of the average",
        ),
        pytest.param({}, {"stages": {"float": 4, "binary_activations": 8}}, {}, id="stages, handed over afterwards"),
        pytest.param(
            {},
            {},
            {
                "type": "Binarized",
                "host": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 4},
                "recipe": {"weight_options": {"alpha": "learned"}},
            },
            id="a foreign network with groups",
        ),
        pytest.param(
            {},
            {"distill": {"network": {"type": "BSRN", "num_feat": 8, "num_hpb": 1}, "path": "teacher.pth"}},
            {},
            id="a teacher",
        ),
    ],
)
def test_resumed_training_equals_the_uninterrupted_one(tiny_pairs, tmp_path, dataset, train_changes, network):
    config = options(tiny_pairs, dataset=dataset, train=train_changes, network=network)
    # The first validation follows the saving of iteration 10: its results must be in that state all the same.
    config["val"]["val_freq"] = 10
    if "distill" in config["train"]:
        teacher = {"path": str(tmp_path / "teacher.pth")}
        config["train"]["distill"] = {**config["train"]["distill"], **teacher}
        network = ARCH_REGISTRY.get("BSRN")(num_feat=8, num_hpb=1)
        torch.save({"params": network.state_dict()}, teacher["path"])
    roots = [tmp_path / "whole", tmp_path / "parts"]
    for root in roots:
        root.mkdir()
    file = training_options.write_options(config, tmp_path / "tiny.yml")
    train(["-opt", file], roots[0])
    train(["-opt", file], roots[1])
    # Forget what came after iteration 10, which is inside the first pass of 12 iterations.
    for name in ("models/net_g_20.pth", "models/net_g_latest.pth", "training_states/20.state"):
        (roots[1] / "experiments/tiny" / name).unlink()
    torch.rand(3)
    train(["-opt", file, "--auto_resume"], roots[1])
    assert_same_checkpoint(*roots, 20)


def test_training_that_failed_while_samples_were_drawn_resumes_exactly(tiny_pairs, tmp_path, monkeypatch):
    """The crops of the sample before the one that failed have been drawn already."""
    from basicsr.data.paired_image_dataset import PairedImageDataset

    config = options(tiny_pairs, dataset={"type": "PairedImageDataset"})
    config["datasets"].pop("val")
    config["val"] = None
    roots = [tmp_path / "whole", tmp_path / "parts"]
    for root in roots:
        root.mkdir()
    file = training_options.write_options(config, tmp_path / "tiny.yml")
    train(["-opt", file], roots[0])
    original, drawn = PairedImageDataset.__getitem__, []

    def fail_once(self, index):
        drawn.append(index)
        if len(drawn) == 8:  # the second one of iteration 4
            raise MemoryError("no more memory")
        return original(self, index)

    monkeypatch.setattr(PairedImageDataset, "__getitem__", fail_once)
    with pytest.raises(MemoryError):
        train(["-opt", file], roots[1])
    assert saved_states(roots[1] / "experiments/tiny/training_states")[0].name == "3.state"
    train(["-opt", file, "--auto_resume"], roots[1])
    assert_same_checkpoint(*roots, 20)


@pytest.mark.parametrize(
    ("kind", "dataset"),
    [
        ("SIGINT", {}),
        ("SIGTERM", {}),
        ("error", {}),
        # Its crops are drawn from the global random state, before the iteration fails.
        ("error", {"type": "PairedImageDataset"}),
    ],
)
def test_interrupted_training_goes_on_as_if_nothing_had_happened(tiny_pairs, tmp_path, kind, dataset):
    config = options(tiny_pairs, dataset=dataset)
    # Each iteration calls the network twice (micro-batches): something happens in the second call of iteration 7.
    completed = 6 if kind == "error" else 7
    roots = [tmp_path / "whole", tmp_path / "parts"]
    for root in roots:
        root.mkdir()
    file = training_options.write_options(config, tmp_path / "tiny.yml")
    handler = signal.getsignal(getattr(signal, kind)) if kind != "error" else None
    train(["-opt", file], roots[0])
    IncidentBSRN.incident = (14, kind)
    with pytest.raises(MemoryError if kind == "error" else TrainingInterruptedError):
        train(["-opt", file], roots[1])
    if handler is not None:
        assert signal.getsignal(getattr(signal, kind)) is handler
    assert saved_states(roots[1] / "experiments/tiny/training_states")[0].name == f"{completed}.state"
    train(["-opt", file, "--auto_resume"], roots[1])
    assert_same_checkpoint(*roots, 20)


def test_training_that_a_watch_stopped_after_a_step_resumes_exactly(tiny_pairs, tmp_path):
    """The error comes when the step is made already: the checkpoint is that of the present iteration."""
    roots = [tmp_path / "whole", tmp_path / "parts"]
    for root in roots:
        root.mkdir()
    watch = {"plateau_window": 3, "plateau_patience": 1, "plateau_gain": 0.99}
    files = {}
    for action in ("warn", "stop"):
        config = options(tiny_pairs, train={"watch": {**watch, "plateau": action}})
        files[action] = training_options.write_options(config, tmp_path / f"{action}.yml")
    train(["-opt", files["warn"]], roots[0])
    with pytest.raises(TrainingPlateauError):
        train(["-opt", files["stop"]], roots[1])
    assert saved_states(roots[1] / "experiments/tiny/training_states")[0].name == "6.state"
    train(["-opt", files["warn"], "--auto_resume"], roots[1])
    assert_same_checkpoint(*roots, 20)


def finished_training(pairs, folder, **changes) -> tuple[dict, Path]:
    """The options and the experiment of a training of 7 iterations, 3 a pass."""
    config = options(pairs, dataset={"dataset_enlarge_ratio": 0.75}, train={"total_iter": 7}, **changes)
    config["logger"]["save_checkpoint_freq"] = 100
    train(["-opt", training_options.write_options(config, folder / "first.yml")], folder)
    return config, folder / "experiments/tiny"


def resume(config, folder):
    train(["-opt", training_options.write_options(config, folder / "second.yml"), "--auto_resume"], folder)
    newest = max((folder / "experiments/tiny").glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
    return newest.read_text()


def test_failed_resume_leaves_the_state_alone(tiny_pairs, tmp_path):
    config, experiment = finished_training(tiny_pairs, tmp_path)
    state = (experiment / "training_states/7.state").read_bytes()
    config["train"].update(total_iter=10, optim_g={"type": "Adam", "lr": 0.001})
    with pytest.raises(OptimizerError, match="latent"):
        resume(config, tmp_path)
    assert (experiment / "training_states/7.state").read_bytes() == state


@pytest.mark.parametrize("changes", [{"dataset_enlarge_ratio": 4}, {"batch_size_per_gpu": 1}])
def test_training_with_longer_passes_than_before_runs_to_its_end(tiny_pairs, tmp_path, changes):
    """BasicSR counts the passes: the state says the third one, which is more than the new training has."""
    config, experiment = finished_training(tiny_pairs, tmp_path)
    config["datasets"]["train"].update(changes)
    config["train"]["total_iter"] = 10
    ((name, _),) = changes.items()
    before, after = {"dataset_enlarge_ratio": (6, 32), "batch_size_per_gpu": (2, 1)}[name]
    kind = {"dataset_enlarge_ratio": "samples", "batch_size_per_gpu": "batch_size"}[name]
    assert f"another order than before: {kind} {before} -> {after}." in resume(config, tmp_path)
    state = torch.load(experiment / "training_states/10.state", weights_only=True)
    assert state["schedulers"][0]["last_epoch"] == 9


def test_seed_that_was_drawn_is_kept(tiny_pairs, tmp_path):
    config = options(tiny_pairs)
    del config["manual_seed"]
    train(["-opt", training_options.write_options(config, tmp_path / "first.yml")], tmp_path)
    experiment = tmp_path / "experiments/tiny"
    whole = torch.load(experiment / "models/net_g_20.pth", weights_only=True)
    (experiment / "training_states/20.state").unlink()
    log = resume(config, tmp_path)
    assert "manual_seed is that of the training state" in log and "another order" not in log
    assert_same(torch.load(experiment / "models/net_g_20.pth", weights_only=True), whole)
    (experiment / "training_states/20.state").unlink()
    seed = torch.load(experiment / "training_states/10.state", weights_only=True)["manual_seed"]
    assert f"another order than before: seed {seed} -> 20000." in resume({**config, "manual_seed": 20000}, tmp_path)


def test_epochs_that_became_iterations_are_logged(tiny_pairs, tmp_path):
    config = options(tiny_pairs)
    config["train"].update(total_epochs=0.5, total_iter=None, iters_per_epoch=4)
    train(["-opt", training_options.write_options(config, tmp_path / "tiny.yml")], tmp_path)
    (log,) = (tmp_path / "experiments/tiny").glob("*.log")
    assert "total_epochs 0.5 = total_iter 2 (4 iterations per epoch)" in log.read_text()


def test_a_signal_gives_the_usual_exit_code(tiny_pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    IncidentBSRN.incident = (3, "SIGINT")
    file = training_options.write_options(options(tiny_pairs), tmp_path / "tiny.yml")
    assert main(["-opt", file]) == 130
    assert "--auto_resume" in capsys.readouterr().err
    assert (tmp_path / "experiments/tiny/training_states/2.state").is_file()


def test_second_pipeline_has_a_log_of_its_own(tiny_pairs, tmp_path):
    config = options(tiny_pairs, train={"total_iter": 5})
    config["logger"].update(save_checkpoint_freq=100, use_tb_logger=False)
    config["val"]["val_freq"] = 100
    for name in ("first", "second"):
        file = training_options.write_options({**config, "name": name}, tmp_path / f"{name}.yml")
        train(["-opt", file], tmp_path)
        (log,) = (tmp_path / "experiments" / name).glob("*.log")
        text = log.read_text()
        assert f"name: {name}" in text and "End of training" in text
        assert "@ 5 iter" in text, "the last validation belongs to the last iteration"


def test_too_few_images_for_a_batch_are_refused(tiny_pairs, tmp_path):
    config = options(tiny_pairs, dataset={"batch_size_per_gpu": 9, "dataset_enlarge_ratio": 1})
    file = training_options.write_options(config, tmp_path / "tiny.yml")
    with pytest.raises(BamError, match="dataset_enlarge_ratio"):
        train(["-opt", file], tmp_path)


def limited(script, folder):
    """Run `script` in a process that may write no file of more than 300 bytes from then on, as on a full disk."""
    head = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def full():
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
"""
    return subprocess.run([sys.executable, "-c", head + script], cwd=folder, capture_output=True, text=True)


def test_a_full_disk_is_named_and_leaves_the_old_checkpoint(tmp_path):
    script = """
import torch
from bam_plugin.models.checkpoint import CheckpointSaveError, save_atomically
save_atomically({"params": torch.ones(3)}, "net_g_5.pth")
full()
try:
    save_atomically({"params": torch.zeros(100000)}, "net_g_5.pth")
except CheckpointSaveError as error:
    print(error)
"""
    result = limited(script, tmp_path)
    assert "net_g_5.pth cannot be written (File too large)" in result.stdout, result.stderr
    assert torch.equal(torch.load(tmp_path / "net_g_5.pth", weights_only=True)["params"], torch.ones(3))
    assert [each.name for each in tmp_path.iterdir()] == ["net_g_5.pth"]


def test_a_training_on_a_full_disk_ends_with_a_message_and_its_last_checkpoint(tiny_pairs, tmp_path):
    config = options(tiny_pairs)
    config["network_g"]["type"] = "BSRN"
    file = training_options.write_options(config, tmp_path / "tiny.yml")
    script = f"""
from bam_plugin.models.binary_sr_model import BinarySRModel
from bam_plugin.train.training import main
whole = BinarySRModel.optimize_parameters
def optimize_parameters(self, iteration):
    if iteration == 12:
        full()
    whole(self, iteration)
BinarySRModel.optimize_parameters = optimize_parameters
sys.exit(main(["-opt", {file!r}]))
"""
    result = limited(script, tmp_path)
    assert result.returncode == 2, result.stderr
    assert "curves for TensorBoard end here" in result.stderr
    assert "bam train: CheckpointSaveError" in result.stderr and "--auto_resume" in result.stderr.splitlines()[-1]
    experiment = tmp_path / "experiments/tiny"
    assert [path.name for path in saved_states(experiment / "training_states")] == ["10.state"]
    assert not list(experiment.rglob(".*.bam-*"))
    train(["-opt", file, "--auto_resume"], tmp_path)
    assert saved_states(experiment / "training_states")[0].name == "20.state"


def test_unfinished_files_of_killed_checkpoints_are_removed(tiny_pairs, tmp_path):
    config, experiment = finished_training(tiny_pairs, tmp_path)
    left = [
        experiment / "models/.net_g_4.bam-0123456789abcdef.pth",
        experiment / "training_states/.4.bam-0123456789abcdef.state",
    ]
    for path in left:
        path.write_bytes(b"half")
    config["train"]["total_iter"] = 8
    log = resume(config, tmp_path)
    assert not any(path.exists() for path in left) and all(path.name in log for path in left)


def test_a_damaged_checkpoint_is_passed_over_and_training_goes_on_exactly(tiny_pairs, tmp_path):
    """From the one before, with a note in the log; the end is that of a training without the damage."""
    config = options(tiny_pairs)
    file = training_options.write_options(config, tmp_path / "tiny.yml")
    roots = [tmp_path / "whole", tmp_path / "parts"]
    for root in roots:
        root.mkdir()
        train(["-opt", file], root)
    experiment = roots[1] / "experiments/tiny"
    damage(experiment / "models/net_g_20.pth")
    log = resume(config, roots[1])
    assert "20.state or its network is damaged" in log
    assert_same_checkpoint(*roots, 20)


def test_a_training_killed_while_it_saves_goes_on_as_if_nothing_had_happened(tiny_pairs, tmp_path):
    """kill -9 between the network and the state of iteration 20: the checkpoint before is resumed, nothing is left."""
    config = options(tiny_pairs)
    config["network_g"]["type"] = "BSRN"
    file = training_options.write_options(config, tmp_path / "tiny.yml")
    roots = [tmp_path / "whole", tmp_path / "parts"]
    for root in roots:
        root.mkdir()
    train(["-opt", file], roots[0])
    script = f"""
import os, signal, torch
from bam_plugin.train.training import main
whole = torch.save
def save(content, file, *args):
    if content.get("iter") == 20:
        file.write(b"half a state")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(content, file, *args)
torch.save = save
main(["-opt", {file!r}])
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=roots[1], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    experiment = roots[1] / "experiments/tiny"
    (hidden,) = (experiment / "training_states").glob(".*.bam-*")
    assert hidden.read_bytes() == b"half a state"
    assert (experiment / "models/net_g_20.pth").is_file()
    assert [path.name for path in saved_states(experiment / "training_states")] == ["10.state"]
    train(["-opt", file, "--auto_resume"], roots[1])
    assert_same_checkpoint(*roots, 20)
    assert not hidden.exists()


def test_weights_that_do_not_fit_are_named(tiny_pairs, tmp_path):
    config, _ = finished_training(tiny_pairs, tmp_path)
    config["network_g"]["num_feat"] = 16
    with pytest.raises(CheckpointError, match=r"net_g_7\.pth: does not fit IncidentBSRN .*of another shape.*head"):
        resume(config, tmp_path)
    config["network_g"]["num_feat"] = 8
    config["name"] = "other"
    contents = {"cut.pth": b"PK\x03\x04 half", "keys.pth": {"weights": {"a": torch.ones(1)}}}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        config["path"]["pretrain_network_g"] = str(path)
        with pytest.raises(CheckpointError, match=name):
            train(["-opt", training_options.write_options(config, tmp_path / "third.yml")], tmp_path)


def test_a_training_does_not_start_from_a_folder_that_it_renames(tiny_pairs, tmp_path):
    config, experiment = finished_training(tiny_pairs, tmp_path)
    config["path"]["pretrain_network_g"] = str(experiment / "models/net_g_7.pth")
    with pytest.raises(TrainingStartError, match=r"pretrain_network_g .*another `name`.*--auto_resume"):
        train(["-opt", training_options.write_options(config, tmp_path / "again.yml")], tmp_path)
    assert (experiment / "models/net_g_7.pth").is_file()


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "net_g_5.pth"
    save_atomically({"params": torch.ones(3)}, path)
    with pytest.raises(Exception, match=r"pickle|local"):
        save_atomically({"params": torch.zeros(1000), "bad": lambda: None}, path)
    assert torch.equal(torch.load(path, weights_only=True)["params"], torch.ones(3))
    assert [each.name for each in tmp_path.iterdir()] == ["net_g_5.pth"]
