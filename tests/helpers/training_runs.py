"""Single training iterations of a small model, and whole checkpoints compared."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from bam_plugin.models.binary_sr_model import BinarySRModel
from helpers.training_options import tiny_options


def make_model(pairs, network: dict | None = None, **train_options) -> BinarySRModel:
    opt = tiny_options(pairs, **train_options)
    opt.update(is_train=True, dist=False, rank=0, world_size=1)
    opt["network_g"].update(network or {})
    return BinarySRModel(opt)


def make_batch(count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return {
        "lq": torch.rand(count, 3, 8, 8, generator=generator), "gt": torch.rand(count, 3, 32, 32, generator=generator),
    }  # fmt: skip


def iterate(model: BinarySRModel, iteration: int, batch: dict[str, torch.Tensor]) -> None:
    model.update_learning_rate(iteration)
    model.feed_data(batch)
    model.optimize_parameters(iteration)


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


def damage(path: Path) -> None:
    """Flip a bit in the greatest record of a file of torch.save: between the records are bytes that nothing reads."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
        content = archive.read(record)
    whole = path.read_bytes()
    position = whole.index(content) + len(content) // 2
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
