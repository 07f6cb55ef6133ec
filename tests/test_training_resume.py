"""Real trainings on the CPU through BasicSR's pipeline: exact resume, signals, crashes, whole files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import training_options

from bam_plugin import _compat
from bam_plugin.errors import BamError
from bam_plugin.models.checkpoint import save_atomically
from bam_plugin.models.session import TrainingInterruptedError
from bam_plugin.models.watch import TrainingPlateauError
from bam_plugin.train import main, train

_compat.apply()

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


def assert_same(left, right, where: str = "") -> None:
    """Nested containers of tensors and plain values are equal, bit for bit."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


def assert_same_checkpoint(left: Path, right: Path, iteration: int) -> None:
    for name in (f"models/net_g_{iteration}.pth", f"training_states/{iteration}.state"):
        one, other = (torch.load(root / "experiments/tiny" / name, weights_only=True) for root in (left, right))
        assert_same(one, other, name)


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
    result["network_g"].update(type="IncidentBSRN", **network)
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
    ],
)
def test_resumed_training_equals_the_uninterrupted_one(tiny_pairs, tmp_path, dataset, train_changes, network):
    config = options(tiny_pairs, dataset=dataset, train=train_changes, network=network)
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


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM", "error"])
def test_interrupted_training_goes_on_as_if_nothing_had_happened(tiny_pairs, tmp_path, kind):
    config = options(tiny_pairs)
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
    assert _compat.newest_state(roots[1] / "experiments/tiny/training_states").name == f"{completed}.state"
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
    assert _compat.newest_state(roots[1] / "experiments/tiny/training_states").name == "6.state"
    train(["-opt", files["warn"], "--auto_resume"], roots[1])
    assert_same_checkpoint(*roots, 20)


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


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "net_g_5.pth"
    save_atomically({"params": torch.ones(3)}, path)
    with pytest.raises(Exception, match=r"pickle|local"):
        save_atomically({"params": torch.zeros(1000), "bad": lambda: None}, path)
    assert torch.equal(torch.load(path, weights_only=True)["params"], torch.ones(3))
    assert [each.name for each in tmp_path.iterdir()] == ["net_g_5.pth"]
