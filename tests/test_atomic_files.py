"""Atomic writes: the content is on the disk before the name is, and a full disk changes nothing."""

import errno
import os
import stat
from pathlib import Path

import pytest

from bam_plugin.files import atomic_path


@pytest.fixture
def events(monkeypatch):
    """What reaches the disk, in order: (`file`, content), (`rename`, content) and (`folder`, names in it)."""
    seen = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            seen.append(("folder", sorted(each.name for each in path.iterdir())))
        else:
            seen.append(("file", path.read_bytes()))
        fsync(descriptor)

    def noted_replace(self, target):
        seen.append(("rename", self.read_bytes()))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return seen


def test_content_reaches_the_disk_before_its_name(tmp_path, events):
    with atomic_path(tmp_path / "net.pth") as temporary:
        temporary.write_bytes(b"whole")
    assert events == [("file", b"whole"), ("rename", b"whole"), ("folder", ["net.pth"])]


def test_a_disk_that_is_full_only_when_it_is_flushed_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "net.pth"
    target.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
