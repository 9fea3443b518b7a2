"""The page cache: right bytes, built once, and rebuilt after every kind of harm."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.errors import UserError
from penstock.model import page_cache, page_file
from penstock.model.page_cache import CachedPages, cache_key, fill, open_or_build
from penstock.model.pages import SECTOR, Page, Slice


@dataclass
class Values:
    """Float32 values in memory that remember how they were asked for."""

    values: torch.Tensor
    asked: list[tuple[int | None, int | None]] = field(default_factory=list)
    by_rows: bool = True
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        self.asked.append((start, stop))
        return self.values[start:stop] if self.values.dim() else self.values


def example() -> tuple[list[Page], dict[str, Values]]:
    """Two pages: rows 0–50 of a matrix with a vector and a scalar after it, and the matrix's other rows."""
    draw = torch.Generator().manual_seed(0)
    sources = {
        "matrix": Values(torch.randn(80, 100, generator=draw)),
        "vector": Values(torch.randn(33, generator=draw)),
        "scalar": Values(torch.tensor(3.3)),
    }
    first = (
        Slice("matrix", 0, 50, (50, 100), "bfloat16", 0, 10_000),
        Slice("vector", 0, 33, (33,), "bfloat16", 10_048, 66),
        Slice("scalar", 0, 1, (), "float32", 10_116, 4),
    )
    second = (Slice("matrix", 50, 80, (30, 100), "bfloat16", 0, 6_000),)
    return [
        Page(0, "layer 0", "layer", 0, first, 3 * SECTOR, None),
        Page(1, "layer 1", "layer", 1, second, 2 * SECTOR, None),
    ], sources


def page_bytes(cached: CachedPages, page: Page) -> bytes:
    assert page.extents is not None
    (extent,) = page.extents
    assert (extent.offset % SECTOR, extent.at, extent.nbytes) == (0, 0, page.nbytes)
    return Path(extent.path).read_bytes()[extent.offset : extent.offset + extent.nbytes]


def assert_right(cached: CachedPages | None) -> CachedPages:
    assert cached is not None
    _, sources = example()
    for page in cached.pages:
        data = page_bytes(cached, page)
        for part in page.slices:
            dtype = getattr(torch, part.dtype)
            given = torch.frombuffer(bytearray(data[part.offset : part.offset + part.nbytes]), dtype=dtype)
            values = sources[part.param].values
            wanted = values[part.start : part.stop] if values.dim() else values
            assert torch.equal(given.reshape(part.shape), wanted.to(dtype))
    return cached


def test_pages_hold_the_converted_values_and_are_built_once(tmp_path: Path) -> None:
    pages, sources = example()
    seen: list[tuple[int, int]] = []
    cached = open_or_build("k", pages, sources, directory=tmp_path, progress=lambda *now: seen.append(now))
    assert assert_right(cached).nbytes == 5 * SECTOR
    assert seen == sorted(seen)
    assert seen[-1] == (5 * SECTOR, 5 * SECTOR)
    for source in sources.values():
        source.asked.clear()
    assert_right(open_or_build("k", pages, sources, directory=tmp_path))
    assert not any(source.asked for source in sources.values())


def test_rows_are_converted_a_chunk_at_a_time(tmp_path: Path) -> None:
    pages, sources = example()
    assert_right(open_or_build("k", pages, sources, directory=tmp_path, chunk_bytes=1_600))
    assert sources["matrix"].asked[:3] == [(0, 8), (8, 16), (16, 24)]
    assert (48, 50) in sources["matrix"].asked


def test_sources_that_have_no_rows_are_asked_once_per_slice(tmp_path: Path) -> None:
    pages, sources = example()
    sources["matrix"].by_rows = False
    assert_right(open_or_build("k", pages, sources, directory=tmp_path, chunk_bytes=200))
    assert sources["matrix"].asked == [(0, 50), (50, 80)]


@pytest.mark.parametrize("at", [0, 5_000, 12_287, 12_288, 5 * SECTOR - 1])
def test_a_changed_byte_is_seen_and_mended(tmp_path: Path, at: int) -> None:
    pages, sources = example()
    cached = assert_right(open_or_build("k", pages, sources, directory=tmp_path))
    data = bytearray(cached.path.read_bytes())
    data[at] ^= 1
    cached.path.write_bytes(data)
    sources["matrix"].asked.clear()
    assert_right(open_or_build("k", pages, sources, directory=tmp_path))
    assert sources["matrix"].asked


def test_swapped_sectors_are_seen(tmp_path: Path) -> None:
    pages, sources = example()
    cached = assert_right(open_or_build("k", pages, sources, directory=tmp_path))
    data = cached.path.read_bytes()
    cached.path.write_bytes(data[SECTOR : 2 * SECTOR] + data[:SECTOR] + data[2 * SECTOR :])
    sources["matrix"].asked.clear()
    assert_right(open_or_build("k", pages, sources, directory=tmp_path))
    assert sources["matrix"].asked


@pytest.mark.parametrize("harm", ["short", "index garbage", "index of another", "no index", "checksums", "a file"])
def test_any_harm_is_mended(tmp_path: Path, harm: str) -> None:
    pages, sources = example()
    cached = assert_right(open_or_build("k", pages, sources, directory=tmp_path))
    index = tmp_path / "k" / "index.json"
    match harm:
        case "short":
            cached.path.write_bytes(cached.path.read_bytes()[:-1])
        case "index garbage":
            index.write_bytes(b"\xff{")
        case "index of another":
            index.write_text(index.read_text().replace('"format": 1', '"format": 0'))
        case "no index":
            index.unlink()
        case "checksums":
            index.write_text('{"format": 1}')
        case "a file":
            (tmp_path / "k").rename(tmp_path / "elsewhere")
            (tmp_path / "k").mkdir()
            (tmp_path / "k" / "something").write_text("else")
    assert_right(open_or_build("k", pages, sources, directory=tmp_path))


def test_another_layout_under_the_same_key_is_built_again(tmp_path: Path) -> None:
    pages, sources = example()
    open_or_build("k", pages, sources, directory=tmp_path)
    float32 = [replace(pages[1], slices=(replace(pages[1].slices[0], dtype="float32", nbytes=12_000),), nbytes=12_288)]
    assert_right(open_or_build("k", float32, sources, directory=tmp_path))


def test_what_does_not_fit_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, sources = example()
    assert open_or_build("k", pages, sources, directory=tmp_path, disk_budget=5 * SECTOR - 1) is None
    assert_right(open_or_build("k", pages, sources, directory=tmp_path, disk_budget=5 * SECTOR))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5 * SECTOR - 1}))
    assert open_or_build("other", pages, sources, directory=tmp_path) is None


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    pages, sources = example()
    monkeypatch.setattr("os.pwrite", full)
    assert open_or_build("k", pages, sources, directory=tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"]


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    pages, sources = example()
    with pytest.raises(UserError, match="set PENSTOCK_CACHE"):
        open_or_build("k", pages, sources, directory=tmp_path / "file" / "pages")


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    pages, sources = example()
    with pytest.raises(KeyboardInterrupt):
        open_or_build("k", pages, sources, directory=tmp_path, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"]
    assert_right(open_or_build("k", pages, sources, directory=tmp_path))


def test_a_killed_build_is_swept_and_built_again(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_page_cache import example, open_or_build
        pages, sources = example()
        open_or_build("k", pages, sources, directory=Path({str(tmp_path)!r}), progress=lambda *_: time.sleep(60))
        """
    )
    child = subprocess.Popen([sys.executable, "-c", program])
    building = tmp_path / "k.building"
    try:
        deadline = time.monotonic() + 60
        while not (building / "pages.bin").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        pages, sources = example()
        assert building.exists()
        # A build that lives is left alone by those of other keys.
        assert_right(open_or_build("other", pages, sources, directory=tmp_path))
        assert building.exists()
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert building.exists()
    assert not (tmp_path / "k").exists()
    assert_right(open_or_build("third", pages, sources, directory=tmp_path))
    assert not building.exists()
    assert_right(open_or_build("k", pages, sources, directory=tmp_path))


def test_two_builders_at_once_build_once(tmp_path: Path) -> None:
    pages, sources = example()
    results: list[CachedPages | None] = []

    def build() -> None:
        results.append(open_or_build("k", pages, sources, directory=tmp_path, progress=lambda *_: time.sleep(0.02)))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for cached in results:
        assert_right(cached)
    assert len(sources["scalar"].asked) == 1


def test_large_caches_are_checked_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, sources = example()
    open_or_build("k", pages, sources, directory=tmp_path)
    monkeypatch.setattr(page_cache, "CHECKED_AT_OPEN_BYTES", 4 * SECTOR)
    read: list[int] = []
    whole = page_cache.checksum
    monkeypatch.setattr(page_cache, "checksum", lambda *where: read.append(where[1]) or whole(*where))
    assert open_or_build("k", pages, sources, directory=tmp_path) is not None
    assert read == [0]


def test_a_page_in_memory_is_filled_a_chunk_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, sources = example()
    cached = assert_right(open_or_build("k", pages, sources, directory=tmp_path))
    sources["matrix"].asked.clear()
    monkeypatch.setattr(page_cache, "CHUNK_BYTES", 1_600)
    for page in cached.pages:
        buffer = torch.zeros(page.nbytes, dtype=torch.uint8)
        fill(sources, page, buffer)
        assert buffer.numpy().tobytes() == page_bytes(cached, page)
    assert sources["matrix"].asked[:3] == [(0, 8), (8, 16), (16, 24)]


def test_the_key_follows_files_layout_and_facts(tmp_path: Path) -> None:
    pages, _ = example()
    path = tmp_path / "model.gguf"
    path.write_bytes(b"12")
    os.utime(path, ns=(1, 1))
    key = cache_key([path], pages)
    assert key == cache_key([path], pages)
    assert len({key, cache_key([path], pages[:1]), cache_key([path], pages, "converter 2")}) == 3
    os.utime(path, ns=(2, 2))
    assert cache_key([path], pages) != key
    os.utime(path, ns=(1, 1))
    assert cache_key([path], pages) == key
    path.write_bytes(b"123")
    os.utime(path, ns=(1, 1))
    assert cache_key([path], pages) != key


def test_a_checksum_of_parts_is_that_of_the_whole() -> None:
    data = np.random.default_rng(0).integers(0, 256, 4 * SECTOR, dtype=np.uint8)
    assert page_file._sum(data[SECTOR:], page_file._sum(data[:SECTOR])) == page_file._sum(data)
