from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.profiling import scratch
from penstock.profiling.scratch import measure_kv, measure_write, own_file, scratch_bytes


def test_a_file_of_its_own_is_there_and_goes_again(tmp_path: Path) -> None:
    with own_file(tmp_path, 0.1, 1 << 20) as pages:
        assert sum(page.nbytes for page in pages) == Path(pages[0].path).stat().st_size == 1 << 20
    assert list(tmp_path.iterdir()) == []


def test_it_goes_when_somebody_stops_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), own_file(tmp_path, 0.1, 1 << 20):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_only_a_part_of_what_is_free_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "free_disk_bytes", lambda path: 4 << 30)
    assert scratch_bytes(tmp_path) == (4 << 30) // 10
    monkeypatch.setattr(scratch, "free_disk_bytes", lambda path: 1 << 20)
    with pytest.raises(UserError, match=r"1 MiB free.*--offload-dir"):
        scratch_bytes(tmp_path)


def test_rates_of_writing(tmp_path: Path) -> None:
    assert 1e5 < measure_write(tmp_path, 1 << 20, 0.02, piece_bytes=1 << 18) < 1e12
    written, read = measure_kv(tmp_path, 1 << 20, 0.02, block_bytes=1 << 13)
    assert 1e4 < written < 1e12 and 1e4 < read < 1e12
    assert list(tmp_path.iterdir()) == []
