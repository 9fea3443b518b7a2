import os
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.trace.store import FileStore, MemoryStore, Sink


def test_memory_and_file_read_the_same(tmp_path: Path) -> None:
    stores = []
    for path in (None, tmp_path / "a"):
        sink = Sink(path, 4)
        sink.write(b"body")
        stores.append(sink.finish(b"head"))
    memory, file = stores
    assert isinstance(memory, MemoryStore) and isinstance(file, FileStore)
    for offset, nbytes in ((0, 8), (2, 3), (6, 9), (20, 1)):
        assert memory.read(offset, nbytes) == file.read(offset, nbytes) == b"headbody"[offset : offset + nbytes]
    assert memory.nbytes == file.nbytes == 8


def test_a_file_that_is_not_there_or_goes_away_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    with pytest.raises(UserError, match="gone cannot be read"):
        FileStore.of(path)
    path.write_bytes(b"here")
    store = FileStore.of(path)
    path.unlink()
    with pytest.raises(UserError, match="gone cannot be read"):
        store.read(0, 1)


@pytest.mark.parametrize("how", ["grown", "shorter", "other bytes", "another file"])
def test_a_file_that_is_written_to_is_not_read_on(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"as it was")
    store = FileStore.of(path)
    assert store.read(0, 2) == b"as"
    if how == "another file":
        (tmp_path / "b").write_bytes(b"as it was")
        os.utime(tmp_path / "b", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        (tmp_path / "b").replace(path)
    else:
        path.write_bytes({"grown": b"as it was, and more", "shorter": b"as", "other bytes": b"AS IT WAS"}[how])
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # the clock of a file system may stand still so long
    with pytest.raises(UserError, match="written to while it was read"):
        store.read(0, 2)


def test_what_is_discarded_is_gone(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "a", 4)
    sink.write(b"body")
    sink.discard()
    sink.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "/", "/dev/null"])
def test_what_is_no_file_is_not_written_over(name: str) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        Sink(Path(name), 0)
