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


def test_a_file_that_goes_away_is_one_line(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "gone")
    for act in (lambda: store.nbytes, lambda: store.read(0, 1)):
        with pytest.raises(UserError, match="gone cannot be read"):
            act()


def test_what_is_discarded_is_gone(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "a", 4)
    sink.write(b"body")
    sink.discard()
    sink.discard()
    assert list(tmp_path.iterdir()) == []
