import os
from pathlib import Path

import pytest

from penstock.model.pages import Extent
from penstock.profiling import disks
from penstock.profiling.disks import link_of, measured_disks

MIB = 1 << 20


def two_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each directory that tests make is a file system of its own."""
    monkeypatch.setattr(disks, "mount_of", lambda path: "fast" if "fast" in path.parts else "slow")


def test_one_file_system_for_all(tmp_path: Path) -> None:
    said: list[str] = []
    with measured_disks(None, tmp_path, tmp_path, 0.1, MIB, MIB, said.append) as found:
        (disk,) = found.by_mount.values()
        assert Path(found.extents[0].path).exists()
    assert disk.write is not None and disk.kv_read and disk.kv_write
    assert [line.split()[0] for line in said] == ["writing", "reading", "writing"]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_elsewhere_is_read_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_mounts(monkeypatch)
    fast, slow = tmp_path / "fast", tmp_path / "slow"
    fast.mkdir(), slow.mkdir()
    (fast / "weights").write_bytes(os.urandom(MIB))
    extents = [Extent(str(fast / "weights"), 0, MIB, 0)]
    with measured_disks(extents, slow, slow, 0.1, MIB, MIB) as found:
        assert {page.path for page in found.extents} == {str(fast / "weights")}
    assert found.by_mount["fast"].write is None
    assert found.by_mount["slow"].write is not None
    assert [path.name for path in fast.iterdir()] == ["weights"]


def test_the_page_cache_elsewhere_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_mounts(monkeypatch)
    fast, slow = tmp_path / "fast", tmp_path / "slow"
    fast.mkdir(), slow.mkdir()
    with measured_disks(None, slow, fast, 0.1, MIB, MIB) as found:
        assert "slow" in Path(found.extents[0].path).parts
    assert set(found.by_mount) == {"fast", "slow"}
    assert not list(fast.iterdir()) and not list(slow.iterdir())


def test_a_link_whose_blocks_take_as_long_as_they_did() -> None:
    link = link_of(1e9, 5e8, 65536)
    assert link.seconds(65536 * 100, 100) == pytest.approx(65536 * 100 / 5e8)
    assert link_of(1e9, 2e9).latency_s == 0
