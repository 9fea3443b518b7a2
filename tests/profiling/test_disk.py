import os
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.model.pages import SECTOR, Extent
from penstock.profiling.disk import Streamer, measure_read, mount_of, pages_of


@pytest.fixture
def pages(tmp_path: Path) -> list[Extent]:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(300_000))
    return pages_of([Extent(str(path), 100, 299_900, 0)], 100_000)


def test_pages_cover_the_extent_and_land_in_place(pages: list[Extent]) -> None:
    assert [(page.offset, page.nbytes) for page in pages] == [(100, 100_000), (100_100, 100_000), (200_100, 99_900)]
    assert all((page.at - page.offset) % SECTOR == 0 for page in pages)


def test_a_link(pages: list[Extent]) -> None:
    link = measure_read(pages, 0.05)
    assert 1e5 < link.bytes_per_s < 1e12
    assert 0 < link.latency_s < 1


def test_a_file_that_ends_early_is_named(pages: list[Extent]) -> None:
    os.truncate(pages[0].path, 5000)
    with Streamer(pages) as stream, pytest.raises(UserError, match="truncated"):
        stream.rate(5.0)


def test_where_a_path_is_mounted(tmp_path: Path) -> None:
    mount = mount_of(tmp_path / "not" / "yet")
    assert os.path.ismount(mount)
    assert str(tmp_path.resolve()).startswith(mount)
