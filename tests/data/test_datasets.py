"""The datasets: same values as BasicSR's, crops as a function of (seed, epoch, number), workers that change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data_images import picture, write

from bam_plugin import data
from bam_plugin.data.paired_patch_dataset import BenchmarkDataset, PairedPatchDataset
from bam_plugin.data.prepare import PreparedSet, prepare_training_set
from bam_plugin.data.storage import close_lmdb
from bam_plugin.errors import BamError

data.register()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("pairs")
    paths = [write(folder / f"in/{number}.png", picture(number, 72, 96)) for number in range(5)]
    paths.append(write(folder / "in/small.png", picture(9, 36, 96)))
    return prepare_training_set(paths, folder, crop_size=None, progress=False)


def options(pairs: PreparedSet, **changes: object) -> dict:
    common = {"name": "T", "phase": "train", "scale": 4, "gt_size": 48, "use_hflip": True, "use_rot": True}
    return {**common, "dataroot_gt": str(pairs.hr), "dataroot_lq": str(pairs.lr[4]), "cache": "memory", **changes}


def test_patches_are_aligned_turned_crops_of_the_images(pairs: PreparedSet) -> None:
    dataset = PairedPatchDataset(options(pairs))
    assert len(dataset) == 5, "the image smaller than gt_size is left out"
    whole = BenchmarkDataset(options(pairs, phase="val"))
    seen = set()
    for number in range(60):
        sample = dataset[number]
        assert sample["gt"].shape == (3, 48, 48) and sample["lq"].shape == (3, 12, 12)
        assert sample["gt"].is_contiguous() and sample["gt"].dtype == torch.float32
        image = whole[number % 5]
        assert sample["gt_path"] == sample["lq_path"] == str(number % 5)
        found = [
            (top, left, turn)
            for top in range(image["lq"].shape[1] - 11)
            for left in range(image["lq"].shape[2] - 11)
            for turn in range(8)
            if torch.equal(_turned(image["lq"][:, top : top + 12, left : left + 12], turn), sample["lq"])
        ]
        assert len(found) == 1
        top, left, turn = found[0]
        hr = image["gt"][:, 4 * top : 4 * top + 48, 4 * left : 4 * left + 48]
        assert torch.equal(_turned(hr, turn), sample["gt"])
        seen.add(turn)
    assert seen == set(range(8))


def _turned(patch: torch.Tensor, turn: int) -> torch.Tensor:
    patch = patch.flip(2) if turn & 1 else patch
    patch = patch.flip(1) if turn & 2 else patch
    return patch.transpose(1, 2) if turn & 4 else patch


def test_flips_and_rotations_can_be_switched_off(pairs: PreparedSet) -> None:
    plain = PairedPatchDataset(options(pairs, use_hflip=False, use_rot=False, gt_size=72))
    image = BenchmarkDataset(options(pairs, phase="val"))[0]["gt"]
    for number in range(0, 40, 5):
        patch = plain[number]["gt"]
        assert any(torch.equal(patch, image[:, :, left : left + 72]) for left in range(0, 25, 4))


def test_a_sample_depends_on_seed_epoch_and_number_alone(pairs: PreparedSet) -> None:
    def sample(number: int, epoch: int, **changes: object) -> torch.Tensor:
        dataset = PairedPatchDataset(options(pairs, **changes))
        dataset.set_epoch(epoch)
        return dataset[number]["gt"]

    first = sample(2, 3, manual_seed=1)
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(first, sample(2, 3, manual_seed=1))
    assert torch.equal(first, sample(2, 3, manual_seed=1, cache="none"))
    # Another seed, epoch, or copy of the same image in one epoch is another crop.
    for other in (sample(2, 3, manual_seed=2), sample(2, 4, manual_seed=1), sample(7, 3, manual_seed=1)):
        assert not torch.equal(first, other)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_workers_change_nothing_and_hear_of_the_epoch(pairs: PreparedSet, cache: str) -> None:
    from bam_plugin.data.sampler import ResumableSampler

    def epochs(workers: int) -> list[torch.Tensor]:
        dataset = PairedPatchDataset(options(pairs, cache=cache))
        sampler = ResumableSampler(dataset=dataset, batch_size=4, ratio=3, seed=7)
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=4, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
        )
        batches = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches += [batch["gt"] for batch in loader]
        return batches

    alone, shared = epochs(0), epochs(2)
    assert len(alone) == len(shared) == 6
    assert all(torch.equal(first, second) for first, second in zip(alone, shared, strict=True))
    patches = torch.cat(alone).flatten(1)
    assert len(torch.unique(patches, dim=0)) == len(patches), "every sample of an enlarged epoch has its own crop"


def test_the_order_depends_on_seed_and_epoch() -> None:
    from bam_plugin.data.sampler import ResumableSampler

    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = ResumableSampler(dataset=range(50), batch_size=1, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    orders = {order(seed, epoch) for seed in (0, 1, 17, 1 << 40) for epoch in (0, 1)}
    assert len(orders) == 8 and all(sorted(each) == list(range(50)) for each in orders)
    assert order(17, 1) == order(17, 1)


def test_whole_images_equal_those_of_basicsr(pairs: PreparedSet) -> None:
    from basicsr.data.paired_image_dataset import PairedImageDataset

    for path in (pairs.hr, pairs.lr[4]):
        close_lmdb(path)
    theirs = PairedImageDataset(options(pairs, phase="val", io_backend={"type": "lmdb"}))
    expected = [theirs[index] for index in range(len(theirs))]
    theirs.file_client.client._client["lq"].close()
    theirs.file_client.client._client["gt"].close()
    ours = BenchmarkDataset(options(pairs, phase="val"))
    assert len(ours) == len(expected) == 6
    for index, item in enumerate(expected):
        for side in ("lq", "gt"):
            assert torch.equal(ours[index][side], item[side])


def test_folders_templates_grey_and_larger_gt(tmp_path: Path) -> None:
    image = picture(0, 50, 63)
    write(tmp_path / "gt/a.png", image)
    write(tmp_path / "gt/grey.png", image[..., 0])
    for name in ("a", "grey"):
        write(tmp_path / f"lq/{name}x4.png", image[:12, :15] if name == "a" else image[:12, :15, 0])
    roots = {"dataroot_gt": tmp_path / "gt", "dataroot_lq": tmp_path / "lq", "scale": 4, "filename_tmpl": "{}x4"}
    dataset = BenchmarkDataset(roots)
    colour, grey = dataset[0], dataset[1]
    assert colour["gt"].shape == (3, 48, 60) and colour["lq"].shape == (3, 12, 15)
    assert grey["gt"].shape == (1, 48, 60) and grey["lq"].shape == (3, 12, 15)
    assert colour["lq_path"].endswith("ax4.png")
    np.testing.assert_array_equal(colour["gt"].numpy(), image[:48, :60, ::-1].transpose(2, 0, 1).astype("f4") / 255)


def test_what_does_not_fit_together_is_named(pairs: PreparedSet, tmp_path: Path) -> None:
    with pytest.raises(BamError, match="multiple of the scale"):
        PairedPatchDataset(options(pairs, gt_size=50))
    with pytest.raises(BamError, match="no image in"):
        PairedPatchDataset(options(pairs, gt_size=400))
    with pytest.raises(BamError, match="auto, memory or none"):
        PairedPatchDataset(options(pairs, cache="ram"))
    with pytest.raises(BamError, match=r"meta_info\.txt is missing"):
        PairedPatchDataset(options(pairs, dataroot_gt=str(tmp_path / "none.lmdb")))
    write(tmp_path / "gt/a.png", picture(0, 64, 64))
    write(tmp_path / "lq/b.png", picture(0, 16, 16))
    roots = {"dataroot_gt": str(tmp_path / "gt"), "dataroot_lq": str(tmp_path / "lq")}
    with pytest.raises(BamError, match="a is only in"):
        PairedPatchDataset(options(pairs, **roots))
    (tmp_path / "lq/b.png").rename(tmp_path / "lq/a.png")
    with pytest.raises(BamError, match="3 times as large"):
        PairedPatchDataset(options(pairs, **roots, scale=3))
    write(tmp_path / "lq/a.png", picture(0, 20, 20))
    with pytest.raises(BamError, match="at least 80x80"):
        BenchmarkDataset(options(pairs, **roots))[0]
