"""Two real processes on the CPU (gloo): synchronized normalization, and the whole training pipeline."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
from helpers import training_options
from helpers.training_runs import assert_same_checkpoint
from torch import nn

from bam_plugin.models.sync_batchnorm import SyncedBatchNorm2d, synchronize_batch_norms

PROCESSES = 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def describe_process(rank: int, port: int) -> None:
    """The environment that torchrun would give."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)


def make_network() -> nn.Module:
    torch.manual_seed(4)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.Tanh(),
        nn.Conv2d(5, 4, 1),
        nn.BatchNorm2d(4, momentum=None),
    )
    return network.double()


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(6, 3, 5, 4, generator=generator, dtype=torch.float64) * torch.arange(1, 7).view(6, 1, 1, 1)
    return x, torch.randn(6, 4, 5, 4, generator=generator, dtype=torch.float64)


def run_steps(network: nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    for _ in range(2):
        network.zero_grad()
        loss = ((network(x) - target) ** 2).mean()
        loss.backward()
    bare = network.module if hasattr(network, "module") else network
    gradients = {f"gradient.{name}": parameter.grad.clone() for name, parameter in bare.named_parameters()}
    return {**gradients, **{name: value.clone() for name, value in bare.state_dict().items()}}


def normalization_worker(rank: int, port: int, folder: str) -> None:
    describe_process(rank, port)
    torch.distributed.init_process_group("gloo")
    network = nn.parallel.DistributedDataParallel(synchronize_batch_norms(make_network()))
    x, target = (part.chunk(PROCESSES)[rank] for part in make_batch())
    torch.save(run_steps(network, x, target), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_synchronized_normalization_equals_one_process_with_the_joined_batch(tmp_path):
    multiprocessing.spawn(normalization_worker, (free_port(), str(tmp_path)), nprocs=PROCESSES)
    expected = run_steps(make_network(), *make_batch())
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-12, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_synchronized_normalization_replaces_in_place_and_is_batch_norm_alone():
    network = make_network()
    parameters = [id(parameter) for parameter in network.parameters()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    synced = synchronize_batch_norms(network)
    assert [type(layer) for layer in synced if isinstance(layer, nn.BatchNorm2d)] == [SyncedBatchNorm2d] * 2
    assert [id(parameter) for parameter in synced.parameters()] == parameters
    assert all(torch.equal(value, state[name]) for name, value in synced.state_dict().items())
    assert all(
        torch.equal(value, run_steps(make_network(), *make_batch())[name])
        for name, value in run_steps(synced, *make_batch()).items()
    )


def training_worker(rank: int, port: int, file: str, folder: str) -> None:
    describe_process(rank, port)
    from bam_plugin.models.session import TrainingSession
    from bam_plugin.train.training import pipeline_process

    arguments = ["-opt", file, "--launcher", "pytorch", "--auto_resume"]
    with pipeline_process("bam_plugin.train", arguments, is_train=True):
        from basicsr.train import train_pipeline

        session = TrainingSession()
        with session.installed():
            train_pipeline(folder)
        model = session.model
        seen = [path for epoch in range(2) for path in samples_of(session, epoch)]
        torch.save({"net": model.get_bare_model(model.net_g).state_dict(), "seen": seen}, f"{folder}/{rank}.pt")


def samples_of(session, epoch: int) -> list[int]:
    session.data.sampler.set_epoch(epoch)
    return list(session.data.sampler)


def test_two_processes_train_one_network_and_resume_exactly(tiny_pairs, tmp_path):
    options = training_options.tiny_options(
        tiny_pairs,
        sync_bn=True,
        accumulate=2,
        health_freq=5,
        stages={"float": 2, "binary_activations": 1},
        watch={"nonfinite": "skip", "plateau": "warn", "plateau_window": 3, "plateau_patience": 1},
        total_iter=6,
    )
    # Learned factors are unused while the weights are full precision.
    options["network_g"]["alpha"] = "learned"
    options["num_gpu"] = "auto" if not torch.cuda.is_available() else 0
    options["val"]["val_freq"] = 3
    options["logger"]["save_checkpoint_freq"] = 3
    # Each process draws its crops from a random state of its own; the order comes from a seed that they have to share.
    options["datasets"]["train"]["type"] = "PairedImageDataset"
    del options["manual_seed"]
    file = training_options.write_options(options, tmp_path / "tiny.yml")
    multiprocessing.spawn(training_worker, (free_port(), file, str(tmp_path)), nprocs=PROCESSES)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    # Running statistics included: they are those of the joined batches.
    assert all(torch.equal(value, results[1]["net"][name]) for name, value in results[0]["net"].items())
    # Together the processes see each of the 8 images three times in a pass.
    seen = [result["seen"] for result in results]
    assert sorted(seen[0][:12] + seen[1][:12]) == sorted(3 * list(range(8)))
    saved = torch.load(Path(tmp_path) / "experiments/tiny/models/net_g_6.pth", weights_only=True)["params"]
    assert all(torch.equal(value, results[0]["net"][name]) for name, value in saved.items())
    parts = tmp_path / "parts"
    for name in ("models/net_g_3.pth", "training_states/3.state"):
        target = parts / "experiments/tiny" / name
        target.parent.mkdir(parents=True)
        shutil.copy(tmp_path / "experiments/tiny" / name, target)
    multiprocessing.spawn(training_worker, (free_port(), file, str(parts)), nprocs=PROCESSES)
    assert_same_checkpoint(tmp_path, parts, 6)
    state = torch.load(parts / "experiments/tiny/training_states/6.state", weights_only=True)
    assert state["random"][0]["python"] != state["random"][1]["python"]
