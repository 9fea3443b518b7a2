"""A disk as the engine reads it: page after page, each in pieces that are in flight together, past the page cache."""

import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean, median

from penstock.machine.machine import Link
from penstock.memory.buffers import aligned_buffer
from penstock.memory.direct import DirectReader
from penstock.model.pages import SECTOR, Extent
from penstock.profiling.fits import fit_line

PAGE_BYTES = 64 << 20  # of a page of a large model
_PARTS = 4  # of it, which a page of a middling model has
_WINDOW_S = 0.5  # in which some pages of either size come
_LEAST_WINDOWS = 3
_MOST_JITTER = 0.9  # so that no page comes before it was asked for


@dataclass(frozen=True, slots=True)
class Disk:
    """What one file system does. mount: where it is mounted.

    read: of pages, one after another; its latency is what a page takes besides its bytes. write: of large pieces; its
    latency is what a KV block takes beyond that rate, as many in flight as the engine has. kv_read, kv_write: bytes per
    second of KV blocks, in no order. None where nothing was written.
    """

    mount: str
    read: Link
    write: Link | None = None
    kv_read: float | None = None
    kv_write: float | None = None


def mount_of(path: Path) -> str:
    """Where the file system is mounted that a path lies on, or would lie on."""
    place = path.resolve()  # a checkpoint of the hub is links to another directory
    while not os.path.ismount(place):
        place = place.parent
    return str(place)


def pages_of(extents: Sequence[Extent], page_bytes: int = PAGE_BYTES) -> list[Extent]:
    """Extents cut into reads of a page, placed so that whole sectors land in place."""
    return [
        Extent(e.path, e.offset + at, min(page_bytes, e.nbytes - at), (e.offset + at) % SECTOR)
        for e in extents
        for at in range(0, e.nbytes, page_bytes)
    ]


def mixed_pages(extents: Sequence[Extent], page_bytes: int = PAGE_BYTES) -> list[Extent]:
    """Pages of two sizes in turn, from all over the extents; no part of one, unless there is nothing else."""
    sizes = (page_bytes, page_bytes // _PARTS)
    large, small = ([p for p in pages_of(extents, size) if p.nbytes == size] for size in sizes)
    if not large:
        return small or pages_of(extents)
    draw = random.Random(0)
    draw.shuffle(large)
    draw.shuffle(small)
    return [page for both in zip(large, small, strict=False) for page in both]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A page that came."""

    nbytes: int
    seconds: float


class Streamer:
    """Reads pages over and over, one at a time, until it is closed.

    So a ring of slots is filled while compute holds it up, or has one of its two slots: a page is begun when another
    one was let go.
    """

    def __init__(self, pages: Sequence[Extent]) -> None:
        self._pages = cycle(pages)
        self._slot = aligned_buffer(max(page.nbytes for page in pages) + SECTOR, huge=True).zero_()
        self._reader = DirectReader()
        self._closed, self._may_read = threading.Event(), threading.Event()
        self._reading = threading.Lock()
        self._loaded: deque[Loaded] = deque()
        self._may_read.set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="penstock-page")
        self._loading = self._pool.submit(self._load)

    def window(self, seconds: float) -> list[Loaded]:
        """Wait for so long, and for a page at least; what has come. Raises UserError where a file cannot be read."""
        self.loaded()
        start, came = time.perf_counter(), list[Loaded]()
        while time.perf_counter() - start < seconds or not came:
            time.sleep(min(seconds, 0.01))
            came += self.loaded()
        return came

    def loaded(self) -> list[Loaded]:
        """What has come since this was asked before. Raises UserError where a file cannot be read."""
        if self._loading.done():
            self._loading.result()
        came = []
        while self._loaded:
            came.append(self._loaded.popleft())
        return came

    def pause(self) -> None:
        """Let the page under way come to its end, and begin no other."""
        self._may_read.clear()
        with self._reading:
            pass

    def go_on(self) -> None:
        """Read again."""
        self._may_read.set()

    def close(self) -> None:
        """Let the page under way come to its end."""
        self._closed.set()
        self._may_read.set()
        self._pool.shutdown()
        self._reader.close()

    def __enter__(self) -> "Streamer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load(self) -> None:
        for page in self._pages:
            self._may_read.wait()
            if self._closed.is_set():
                return
            with self._reading:
                start = time.perf_counter()
                nbytes = self._reader.read([page], self._slot)
                self._loaded.append(Loaded(nbytes, time.perf_counter() - start))


def measure_read(extents: Sequence[Extent], budget_s: float) -> Link:
    """Pages of two sizes from all over the extents, with nothing else going on."""
    with Streamer(mixed_pages(extents)) as stream:
        number = max(_LEAST_WINDOWS, round(budget_s / _WINDOW_S))
        stream.window(budget_s / (number + 1))  # threads and files begin
        return link_of_pages([stream.window(budget_s / (number + 1)) for _ in range(number)])


def link_of_pages(windows: Sequence[Sequence[Loaded]]) -> Link:
    """The link that explains pages' times: of each size the mean in a window, and of the windows the median.

    The mean, because whoever waits for a disk waits for its slow pages too; the median, because others use it as well.
    """
    times, unsteady = page_times(windows), jitter(windows)
    line = fit_line(list(times), list(times.values())) if len(times) > 1 else None
    if line is None or not line.each_s:
        nbytes = max(times)
        return Link(nbytes / times[nbytes], jitter=unsteady)
    return Link(1 / line.each_s, line.fixed_s, jitter=unsteady)


def jitter(windows: Sequence[Sequence[Loaded]]) -> float:
    """How far pages' times lie from the mean of their size in their window, as a part of it: the mean of a window, the
    median of the windows; 0 where no window has two pages of a size."""
    found = []
    for window in windows:
        apart = [abs(page.seconds / mean(times) - 1) for page, times in _beside_others(window)]
        if apart:
            found.append(mean(apart))
    return min(_MOST_JITTER, median(found)) if found else 0.0


def _beside_others(window: Sequence[Loaded]) -> Iterator[tuple[Loaded, list[float]]]:
    """Each page that is not the only one of its size, and the seconds of all pages of its size."""
    for page in window:
        times = [other.seconds for other in window if other.nbytes == page.nbytes]
        if len(times) > 1:
            yield page, times


def page_times(windows: Sequence[Sequence[Loaded]]) -> dict[int, float]:
    """Seconds of a page by its size: the mean of a window, the median of those windows that had any."""
    means: dict[int, list[float]] = {}
    for window in windows:
        for nbytes in {page.nbytes for page in window}:
            means.setdefault(nbytes, []).append(mean(page.seconds for page in window if page.nbytes == nbytes))
    return {nbytes: median(seconds) for nbytes, seconds in sorted(means.items())}
