import os
import time
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.machine.machine import Link
from penstock.model.pages import SECTOR, Extent
from penstock.profiling.disk import (
    Loaded,
    Streamer,
    jitter,
    link_of_pages,
    measure_read,
    mount_of,
    page_times,
    pages_of,
    two_sizes,
)


@pytest.fixture
def pages(tmp_path: Path) -> list[Extent]:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(300_000))
    return pages_of([Extent(str(path), 100, 299_900, 0)], 100_000)


def test_pages_cover_the_extent_and_land_in_place(pages: list[Extent]) -> None:
    assert [(page.offset, page.nbytes) for page in pages] == [(100, 100_000), (100_100, 100_000), (200_100, 99_900)]
    assert all((page.at - page.offset) % SECTOR == 0 for page in pages)


def test_pages_of_two_sizes_from_all_over(tmp_path: Path) -> None:
    extents = [Extent(str(tmp_path / name), 0, 1600, 0) for name in "ab"]
    large, small = two_sizes(extents, 160)
    assert {page.nbytes for page in large} == {160} and {page.nbytes for page in small} == {10}
    for pages, size in ((large, 160), (small, 10)):
        assert {(p.path, p.offset) for p in pages} == {(e.path, at) for e in extents for at in range(0, 1600, size)}
        assert [page.offset for page in pages] != sorted(page.offset for page in pages)


def test_a_file_smaller_than_a_page_is_read_as_it_is(tmp_path: Path) -> None:
    whole = Extent(str(tmp_path / "a"), 0, 9, 0)
    assert two_sizes([whole], 160) == [[whole]]
    assert [{p.nbytes for p in pages} for pages in two_sizes([Extent(str(tmp_path / "a"), 0, 60, 0)], 160)] == [{10}]


def test_a_link(pages: list[Extent]) -> None:
    link = measure_read(pages, 0.05)
    assert 1e5 < link.bytes_per_s < 1e12
    assert 0 <= link.latency_s < 1


def test_what_a_page_takes_besides_its_bytes_is_told_apart() -> None:
    windows = [[Loaded(n, 0.002 + n / 1e9) for n in (4_000_000, 16_000_000, 4_000_000)]] * 3
    assert link_of_pages(windows) == Link(pytest.approx(1e9), pytest.approx(0.002))


def test_slow_pages_of_a_window_count_and_a_window_disturbed_by_others_does_not() -> None:
    calm = [Loaded(1000, seconds) for seconds in (1.0, 1.0, 4.0)]
    disturbed = [Loaded(1000, 50.0)]
    assert page_times([calm, disturbed, calm]) == {1000: pytest.approx(2.0)}
    assert link_of_pages([calm, disturbed, calm]) == Link(pytest.approx(500.0))


def test_how_far_pages_lie_from_the_mean() -> None:
    def pages(*factors: float) -> list[Loaded]:
        return [Loaded(n, factor * n / 1000) for factor in factors for n in (1000, 250, 1000, 250)]

    assert jitter([pages(1, 1, 1)]) == 0
    assert jitter([pages(0.8, 1.2)]) == pytest.approx(2 * 0.2)  # of four pages: of one it is twice as much
    assert jitter([pages(0.8, 1.2), pages(1, 1), pages(0.8, 1.2)]) == pytest.approx(0.4)
    late = [Loaded(1000, seconds) for seconds in (1.3, 0.7) * 6]
    assert jitter([late]) == pytest.approx(0)  # what one takes longer, the next takes less
    assert jitter([[Loaded(1000, 1.0)] * 7, []]) == 0  # nothing to compare with
    assert jitter([[Loaded(1000, seconds) for seconds in (*[0.001] * 99, 100.0)]]) < 1


def test_a_stream_can_be_held_up(pages: list[Extent]) -> None:
    with Streamer(pages) as stream:
        assert stream.window(0.01)
        stream.pause()
        time.sleep(0.02)
        assert stream.pause() == []
        stream.step()
        assert len(stream.pause()) == 2
        assert stream.window(0.01)


def test_a_file_that_ends_early_is_named(pages: list[Extent]) -> None:
    os.truncate(pages[0].path, 5000)
    with Streamer(pages) as stream, pytest.raises(UserError, match="truncated"):
        stream.window(5.0)


def test_where_a_path_is_mounted(tmp_path: Path) -> None:
    mount = mount_of(tmp_path / "not" / "yet")
    assert os.path.ismount(mount)
    assert str(tmp_path.resolve()).startswith(mount)
