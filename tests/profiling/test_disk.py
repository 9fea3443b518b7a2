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
    mixed_pages,
    mount_of,
    page_times,
    pages_of,
)


@pytest.fixture
def pages(tmp_path: Path) -> list[Extent]:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(300_000))
    return pages_of([Extent(str(path), 100, 299_900, 0)], 100_000)


def test_pages_cover_the_extent_and_land_in_place(pages: list[Extent]) -> None:
    assert [(page.offset, page.nbytes) for page in pages] == [(100, 100_000), (100_100, 100_000), (200_100, 99_900)]
    assert all((page.at - page.offset) % SECTOR == 0 for page in pages)


def test_pages_of_two_sizes_come_in_turn_from_all_over(tmp_path: Path) -> None:
    extents = [Extent(str(tmp_path / name), 0, 1000, 0) for name in "ab"]
    pages = mixed_pages(extents, 100)
    assert [page.nbytes for page in pages] == [100, 25] * 20
    large = pages[::2]
    assert {(page.path, page.offset) for page in large} == {(e.path, at) for e in extents for at in range(0, 1000, 100)}
    assert [page.offset for page in large] != sorted(page.offset for page in large)


def test_a_file_smaller_than_a_page_is_read_as_it_is(tmp_path: Path) -> None:
    whole = Extent(str(tmp_path / "a"), 0, 10, 0)
    assert mixed_pages([whole], 100) == [whole]
    assert {page.nbytes for page in mixed_pages([Extent(str(tmp_path / "a"), 0, 60, 0)], 100)} == {25}


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
    assert link_of_pages([calm, disturbed, calm]) == Link(pytest.approx(500.0), jitter=pytest.approx(2 / 3))


def test_how_far_pages_lie_from_the_mean_of_their_size() -> None:
    steady = [Loaded(n, n / 1000) for n in (1000, 250, 1000, 250)]
    assert jitter([steady]) == 0
    unsteady = [*(Loaded(1000, seconds) for seconds in (0.8, 1.2)), *(Loaded(250, seconds) for seconds in (0.3, 0.5))]
    assert jitter([unsteady]) == pytest.approx((0.2 + 0.2 + 0.25 + 0.25) / 4)
    assert jitter([unsteady, steady, unsteady]) == pytest.approx(0.225)
    assert jitter([[Loaded(1000, 1.0)], []]) == 0  # nothing to compare with
    assert jitter([[Loaded(1000, seconds) for seconds in (*[0.001] * 99, 100.0)]]) < 1


def test_a_stream_can_be_held_up(pages: list[Extent]) -> None:
    with Streamer(pages) as stream:
        assert stream.window(0.01)
        stream.pause()
        stream.loaded()
        time.sleep(0.02)
        assert stream.loaded() == []
        stream.go_on()
        assert stream.window(0.01)


def test_a_file_that_ends_early_is_named(pages: list[Extent]) -> None:
    os.truncate(pages[0].path, 5000)
    with Streamer(pages) as stream, pytest.raises(UserError, match="truncated"):
        stream.window(5.0)


def test_where_a_path_is_mounted(tmp_path: Path) -> None:
    mount = mount_of(tmp_path / "not" / "yet")
    assert os.path.ismount(mount)
    assert str(tmp_path.resolve()).startswith(mount)
