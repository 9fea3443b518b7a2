"""A disk as the engine reads it: pages, by two loaders, past the page cache."""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from penstock.machine.machine import Link
from penstock.memory.buffers import aligned_buffer
from penstock.memory.direct import DirectReader
from penstock.model.pages import SECTOR, Extent
from penstock.profiling.timing import median_s

PAGE_BYTES = 32 << 20  # of a read: a page of a middling model
_LOADERS = 2  # as the pager has


@dataclass(frozen=True, slots=True)
class Disk:
    """What one file system does. mount: where it is mounted.

    write: of large pieces; its latency is what a KV block takes beyond that rate, as many in flight as the engine has.
    kv_read, kv_write: bytes per second of KV blocks, in no order. None where nothing was written.
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


class Streamer:
    """Reads pages over and over, as the pager's loaders do, until it is closed; ``nbytes`` counts what has come."""

    def __init__(self, pages: Sequence[Extent]) -> None:
        self.nbytes = 0
        self._pages, self._turn, self._closed = pages, count(), threading.Event()
        self._lock = threading.Lock()
        self._reader = DirectReader()
        self._pool = ThreadPoolExecutor(_LOADERS, thread_name_prefix="penstock-page")
        self._loads = [self._pool.submit(self._load) for _ in range(_LOADERS)]

    def rate(self, seconds: float) -> float:
        """Bytes per second over a while from now on. Raises UserError where a file cannot be read."""
        start, before = time.perf_counter(), self.nbytes
        while time.perf_counter() - start < seconds or self.nbytes == before:
            time.sleep(min(seconds, 0.01))
            if failed := [load for load in self._loads if load.done()]:
                failed[0].result()
        return (self.nbytes - before) / (time.perf_counter() - start)

    def close(self) -> None:
        """Let the reads under way come to their end."""
        self._closed.set()
        self._pool.shutdown()
        self._reader.close()

    def __enter__(self) -> "Streamer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load(self) -> None:
        slot = aligned_buffer(max(page.nbytes for page in self._pages) + SECTOR, huge=True)
        slot.zero_()
        while not self._closed.is_set():
            page = self._pages[next(self._turn) % len(self._pages)]
            read = self._reader.read([page], slot)
            with self._lock:
                self.nbytes += read


def measure_read(pages: Sequence[Extent], budget_s: float) -> Link:
    """Pages in the order given; latency_s: of a single small read with nothing else going on."""
    with Streamer(pages) as stream:
        stream.rate(budget_s / 8)  # threads and files begin
        rate = stream.rate(budget_s * 3 / 4)
    return Link(rate, _small_read_s(pages, budget_s / 8))


def _small_read_s(pages: Sequence[Extent], budget_s: float) -> float:
    """Median seconds of a read of one sector, each somewhere else."""
    reader, buffer, turn = DirectReader(), aligned_buffer(2 * SECTOR), count(1)

    def read() -> None:
        page = pages[next(turn) % len(pages)]
        sector = (next(turn) * 7919) % max(1, page.nbytes // SECTOR) * SECTOR
        nbytes = min(SECTOR, page.nbytes - sector)
        reader.read([Extent(page.path, page.offset + sector, nbytes, page.at)], buffer)

    try:
        return median_s(read, budget_s)
    finally:
        reader.close()
