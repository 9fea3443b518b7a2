"""A disk as the engine reads it: page after page, each in pieces that are in flight together, past the page cache."""

import math
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean, median

from penstock.machine.machine import Link
from penstock.memory.buffers import aligned_buffer
from penstock.memory.direct import Arrival, DirectReader
from penstock.model.pages import SECTOR, Extent
from penstock.profiling.fits import fit_line

PAGE_BYTES = 32 << 20  # of a page of a large model
_PARTS = 16  # of it, which a page of a small model has
_WINDOW_S = 0.5  # in which some pages of either size come
_LEAST_WINDOWS = 4
_SLOTS = 2
_GROUP = 4  # pages
_LEAST_S = 1e-6  # of a page that came before the one that was asked for earlier
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


def two_sizes(extents: Sequence[Extent], page_bytes: int = PAGE_BYTES) -> list[list[Extent]]:
    """Pages of either size from all over the extents, in no order; no part of one, unless there is nothing else."""
    sizes = (page_bytes, page_bytes // _PARTS)
    found = [[page for page in pages_of(extents, size) if page.nbytes == size] for size in sizes]
    draw = random.Random(0)
    for pages in found:
        draw.shuffle(pages)
    return [pages for pages in found if pages] or [pages_of(extents)]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A page that came."""

    nbytes: int
    seconds: float


class Streamer:
    """Reads pages over and over, two of them asked for at a time, as a ring of slots has while the disk holds it up.

    No thread waits for them, since none does while an engine computes: whoever computes calls ``step`` now and then.
    """

    def __init__(self, pages: Sequence[Extent]) -> None:
        size = max(page.at + page.nbytes for page in pages)
        slots = [aligned_buffer(size, huge=True).zero_() for _ in range(_SLOTS)]
        self._next = zip(cycle([[page] for page in pages]), cycle(slots), strict=False)
        self._reader, self._ended = DirectReader(), 0.0
        self._asked: deque[Arrival] = deque()
        self._loaded: list[Loaded] = []

    def step(self) -> None:
        """Note pages that have come, and ask for others instead. Raises UserError where a file cannot be read."""
        while self._asked and self._asked[0].done():
            self._take()
        while len(self._asked) < _SLOTS:
            self._asked.append(self._reader.begin(*next(self._next)))

    def window(self, seconds: float) -> list[Loaded]:
        """Wait for so long, and for a page at least; what has come. Raises UserError where a file cannot be read."""
        start = time.perf_counter()
        while time.perf_counter() - start < seconds or not self._loaded:
            self.step()
            self._take()
        return self.loaded()

    def loaded(self) -> list[Loaded]:
        """What has come since this was asked before."""
        came, self._loaded = self._loaded, []
        return came

    def pause(self) -> list[Loaded]:
        """Let the pages under way come, and ask for no other until the next step; what has come."""
        while self._asked:
            self._take()
        return self.loaded()

    def close(self) -> None:
        """Give up the pages under way."""
        self._asked.clear()
        self._reader.close()

    def __enter__(self) -> "Streamer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self) -> None:
        """Wait for the page that was asked for first. It takes from its beginning, or from the end of the one before
        it where their reads were in flight together, to its own end."""
        arrival = self._asked.popleft()
        arrival.result()
        began, ended = arrival.span
        self._loaded.append(Loaded(arrival.nbytes, max(_LEAST_S, ended - max(began, self._ended))))
        self._ended = max(self._ended, ended)


@contextmanager
def streamers(extents: Sequence[Extent]) -> Iterator[Sequence[Streamer]]:
    """One for each size of pages; their threads and files have begun."""
    with ExitStack() as opened:
        streams = [opened.enter_context(Streamer(pages)) for pages in two_sizes(extents)]
        for stream in streams:
            stream.window(0.0)
            stream.pause()
        yield streams


def measure_read(extents: Sequence[Extent], budget_s: float) -> Link:
    """Pages of two sizes from all over the extents, with nothing else going on."""
    number = max(_LEAST_WINDOWS, round(budget_s / _WINDOW_S))
    with streamers(extents) as streams:
        windows = []
        for _, stream in zip(range(number), cycle(streams), strict=False):
            windows.append(stream.window(budget_s / number))
            stream.pause()
        return link_of_pages(windows)


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
    """How far a page's time lies from the mean time, as a part of it and in the mean of a window; of the windows the
    median, 0 where none has two groups of pages.

    Told by neighbouring pages together, for where reads are in flight together, what one page takes longer the next
    takes less; of so many that vary by themselves, the sum varies by the square root of their number less.
    """
    found = []
    for window in windows:
        groups = [window[first : first + _GROUP] for first in range(0, len(window) - _GROUP + 1, _GROUP)]
        alike = [group for group in groups if _nbytes(group) == _nbytes(groups[0])]
        times = [sum(page.seconds for page in group) for group in alike]
        if len(times) > 1:
            found.append(math.sqrt(_GROUP) * mean(abs(seconds / mean(times) - 1) for seconds in times))
    return min(_MOST_JITTER, median(found)) if found else 0.0


def _nbytes(pages: Sequence[Loaded]) -> int:
    return sum(page.nbytes for page in pages)


def page_times(windows: Sequence[Sequence[Loaded]]) -> dict[int, float]:
    """Seconds of a page by its size: the mean of a window, the median of those windows that had any."""
    means: dict[int, list[float]] = {}
    for window in windows:
        for nbytes in {page.nbytes for page in window}:
            means.setdefault(nbytes, []).append(mean(page.seconds for page in window if page.nbytes == nbytes))
    return {nbytes: median(seconds) for nbytes, seconds in sorted(means.items())}
