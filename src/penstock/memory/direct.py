"""Files read and written past the page cache, by a few threads at once.

A page cache would hold a second copy of what the pager already holds, and evict it just before it is needed again.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from penstock.memory.buffers import aligned_buffer
from penstock.memory.files import BOUNCE_BYTES, Bounce, File, bytes_of
from penstock.memory.native_reads import Job, ReadQueue
from penstock.model.pages import SECTOR, Extent


class DirectReader:
    """Copies extents of files into memory with ``threads`` reads of at most ``chunk_bytes`` in flight.

    Whole sectors go straight to their place if memory address and file offset agree modulo a sector; edges and the rest
    go through a small buffer per thread. Where a file system refuses O_DIRECT, reads are buffered and dropped from the
    page cache afterwards. May be used from several threads at once.
    """

    def __init__(self, threads: int = 8, chunk_bytes: int = 4 << 20) -> None:
        self._threads, self._chunk_bytes = threads, chunk_bytes
        self._queue: ReadQueue | None = None
        self._files: dict[str, File] = {}
        self._lock = threading.Lock()
        self._bounce = Bounce()
        self._cuts: dict[tuple[int, int], tuple[Sequence[Extent], npt.NDArray[np.int64]]] = {}

    def read(self, extents: Sequence[Extent], buffer: torch.Tensor, start: int = 0) -> int:
        """Fills ``buffer`` (uint8, contiguous) from byte ``start`` on with the extents; returns the bytes read.

        Raises UserError, naming the file, where one is missing, cannot be read, or is shorter than the extents say.
        """
        job = Job(self._cut(extents, buffer, start), buffer)
        try:
            self._begin(job, extents, buffer, start).result()
        except BaseException:  # nobody may write into the buffer once this call is over, be it by an error or Ctrl-C
            job.give_up()
            job.wait()
            raise
        return job.nbytes

    def begin(self, extents: Sequence[Extent], buffer: torch.Tensor) -> "Arrival":
        """The same, begun; leave the buffer alone until it is over. For extents that come again and again: how they are
        cut is kept. Raises UserError where a file is missing."""
        key = (id(extents), buffer.data_ptr() % SECTOR)  # an id that lasts, for what it is of is kept as well
        known = self._cuts.get(key)
        if known is None:
            known = self._cuts[key] = (extents, self._cut(extents, buffer, 0))
        return self._begin(Job(known[1], buffer), extents, buffer, 0)

    def read_rows(self, path: str, offset: int, row_bytes: int, rows: Sequence[int]) -> torch.Tensor:
        """The given rows of a table of ``row_bytes`` each that begins at ``offset``: uint8 (len(rows), row_bytes)."""
        wanted, places = torch.unique(torch.tensor(rows, dtype=torch.int64), return_inverse=True)
        buffer = aligned_buffer(len(wanted) * row_bytes)
        extents = [
            Extent(path, offset + row * row_bytes, row_bytes, at * row_bytes) for at, row in enumerate(wanted.tolist())
        ]
        self.read(extents, buffer)
        return buffer.view(len(wanted), row_bytes)[places]

    def close(self) -> None:
        """Gives up what has not been read yet, waits for reads under way and closes all files."""
        if self._queue:
            self._queue.close()
        self._queue = None
        self._cuts.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _cut(self, extents: Sequence[Extent], buffer: torch.Tensor, start: int) -> npt.NDArray[np.int64]:
        """How extents are read: a job's pieces, whose places in memory count from the buffer's beginning."""
        pieces = []
        for extent in _joined(extents):
            file = self._file(extent.path)
            for offset, begin, nbytes, straight in _cut(extent, buffer.data_ptr() + start, start, self._chunk_bytes):
                pieces.append((file.descriptor, offset, begin, nbytes, straight, file.direct))
        return np.array(pieces, np.int64).reshape(-1, 6)

    def _begin(self, job: Job, extents: Sequence[Extent], buffer: torch.Tensor, start: int) -> "Arrival":
        with self._lock:
            if self._queue is None:
                self._queue = ReadQueue(self._threads)
        self._queue.ask(job)
        return Arrival(job, lambda: self._again(extents, buffer, start))

    def _again(self, extents: Sequence[Extent], buffer: torch.Tensor, start: int) -> None:
        """Read by the interpreter what was refused: it says why, or finds out that a file refuses direct reads."""
        memory = bytes_of(buffer)
        for extent in _joined(extents):
            file = self._file(extent.path)
            for offset, begin, nbytes, straight in _cut(extent, buffer.data_ptr() + start, start, self._chunk_bytes):
                target = memory[begin : begin + nbytes]
                if straight or not file.direct:
                    file.read_all(target, offset)
                    continue
                lead = offset % SECTOR
                needed = lead + nbytes
                sectors = self._bounce.memory[: needed + -needed % SECTOR]
                file.read_all(sectors, offset - lead, needed=needed)
                target[:] = sectors[lead:needed]
        self._cuts.clear()  # they say which files are read directly

    def _file(self, path: str) -> File:
        with self._lock:
            if path not in self._files:
                self._files[path] = File(path, os.O_RDONLY)
            return self._files[path]


class Arrival:
    """Bytes on their way into a buffer. again: reads them once more, and says what is wrong with them."""

    def __init__(self, job: Job, again: Callable[[], None]) -> None:
        self._job, self._again = job, again
        self._mended = False

    @property
    def nbytes(self) -> int:
        """Bytes that come."""
        return self._job.nbytes

    def done(self) -> bool:
        """Whether nothing is written any more."""
        return self._job.over()

    def wait(self) -> None:
        """Until nothing is written any more."""
        self._job.wait()

    def result(self) -> None:
        """Waits for all bytes. Raises UserError, naming the file, where one cannot be read or is too short, and
        RuntimeError where they were given up."""
        self._job.wait()
        if self._job.given_up:
            raise RuntimeError("bytes that were given up do not come")
        if self._job.failed and not self._mended:
            self._again()
            self._mended = True

    def cancel(self) -> None:
        """Leave what has not come yet; the bytes are of no use then."""
        self._job.give_up()

    @property
    def span(self) -> tuple[float, float]:
        """When its first read began and its last one ended, in time.perf_counter's seconds; once it is done."""
        return self._job.span


def _joined(extents: Sequence[Extent]) -> Iterator[Extent]:
    """The same bytes in as few extents as possible."""
    last: Extent | None = None
    for extent in extents:
        if (
            last
            and (extent.path, extent.offset - extent.at) == (last.path, last.offset - last.at)
            and (extent.at == last.at + last.nbytes)
        ):
            last = Extent(last.path, last.offset, last.nbytes + extent.nbytes, last.at)
        else:
            if last:
                yield last
            last = extent
    if last:
        yield last


def _cut(extent: Extent, address: int, start: int, chunk_bytes: int) -> Iterator[tuple[int, int, int, bool]]:
    """The extent in pieces of one read each: (file offset, place in memory, bytes, whole sectors in place)."""
    shift = start + extent.at - extent.offset
    congruent = (address + extent.at - extent.offset) % SECTOR == 0
    end = extent.offset + extent.nbytes
    offset = extent.offset
    while offset < end:
        floor = offset - offset % SECTOR
        straight = congruent and floor == offset and end - offset >= SECTOR
        if straight:
            stop = min(offset + chunk_bytes, end - end % SECTOR)
        elif congruent:
            stop = min(floor + SECTOR, end)
        else:
            stop = min(floor + BOUNCE_BYTES, end)
        yield offset, offset + shift, stop - offset, straight
        offset = stop
