"""Files read and written past the page cache, by a few threads at once.

A page cache would hold a second copy of what the pager already holds, and evict it just before it is needed again.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from penstock.errors import UserError
from penstock.memory.buffers import aligned_buffer
from penstock.memory.files import BOUNCE_BYTES, Bounce, File, bytes_of
from penstock.model.pages import SECTOR, Extent

_BATCH_BYTES, _BATCH_PIECES = 256 << 10, 16  # small pieces share one task


class DirectReader:
    """Copies extents of files into memory with ``threads`` reads of at most ``chunk_bytes`` in flight.

    Whole sectors go straight to their place if memory address and file offset agree modulo a sector; edges and the rest
    go through a small buffer per thread. Where a file system refuses O_DIRECT, reads are buffered and dropped from the
    page cache afterwards. May be used from several threads at once.
    """

    def __init__(self, threads: int = 8, chunk_bytes: int = 4 << 20) -> None:
        self._chunk_bytes = chunk_bytes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="penstock-read")
        self._files: dict[str, File] = {}
        self._opening = threading.Lock()
        self._bounce = Bounce()

    def read(self, extents: Sequence[Extent], buffer: torch.Tensor, start: int = 0) -> int:
        """Fills ``buffer`` (uint8, contiguous) from byte ``start`` on with the extents; returns the bytes read.

        Raises UserError, naming the file, where one is missing, cannot be read, or is shorter than the extents say.
        """
        memory, address = bytes_of(buffer), buffer.data_ptr()
        pieces = (
            _Piece(self._file(extent.path), offset, memory[begin : begin + nbytes], straight)
            for extent in _joined(extents)
            for offset, begin, nbytes, straight in _cut(extent, address + start, start, self._chunk_bytes)
        )
        futures = []
        try:
            for batch in _batches(pieces):
                futures.append(self._pool.submit(self._read_pieces, batch))
            for future in futures:
                future.result()
        finally:  # nobody may write into the buffer once this call is over, be it by an error or Ctrl-C
            for future in futures:
                future.cancel()
            wait(futures)
        return sum(extent.nbytes for extent in extents)

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
        """Waits for reads under way and closes all files."""
        self._pool.shutdown(cancel_futures=True)
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, path: str) -> File:
        with self._opening:
            if path not in self._files:
                self._files[path] = File(path, os.O_RDONLY)
            return self._files[path]

    def _read_pieces(self, pieces: Sequence["_Piece"]) -> None:
        for piece in pieces:
            if piece.straight or not piece.file.direct:
                piece.file.read_all(piece.target, piece.offset)
            else:
                lead = piece.offset % SECTOR
                nbytes = lead + len(piece.target)
                sectors = self._bounce.memory[: nbytes + -nbytes % SECTOR]
                piece.file.read_all(sectors, piece.offset - lead, needed=nbytes)
                piece.target[:] = sectors[lead:nbytes]


class ScratchFile:
    """``nbytes`` of disk for what was moved out of memory; it has no name, so nothing is left of it however we end.

    Offsets and lengths are whole sectors. Transfers run in threads, in no order among each other. sparse: disk space is
    taken as it is written, instead of now. Raises UserError where the file cannot be made or the disk has no room.
    """

    def __init__(self, path: str | Path, nbytes: int, threads: int = 4, *, sparse: bool = False) -> None:
        self.nbytes = nbytes
        self._file = File(str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.unlink(path)
        try:
            self._file.reserve(nbytes, sparse)
        except OSError as error:
            self._file.close()
            free = shutil.disk_usage(Path(path).parent).free
            raise UserError(
                f"{Path(path).parent} cannot take {nbytes:,} bytes ({error.strerror}; {free:,} are free): "
                "give another --offload-dir or a smaller --disk-memory"
            ) from error
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="penstock-scratch")
        self._bounce = Bounce()

    @property
    def taken_bytes(self) -> int:
        """Disk space that it takes now."""
        return self._file.taken_bytes()

    def write(self, offset: int, buffer: torch.Tensor) -> Future[None]:
        """Writes a uint8 buffer to byte ``offset``; leave the buffer alone until the future is done."""
        return self._pool.submit(self._transfer, offset, self._checked(offset, buffer), self._out)

    def read_into(self, offset: int, buffer: torch.Tensor) -> Future[None]:
        """Fills a uint8 buffer from byte ``offset`` on; the bytes are there when the future is done.

        Device memory is filled too, behind the compute that was issued before.
        """
        if self._checked(offset, buffer).device.type != "cpu":
            return self._pool.submit(self._to_device, offset, buffer)
        return self._pool.submit(self._transfer, offset, buffer, self._in)

    def close(self) -> None:
        """Waits for transfers under way; the disk space goes back."""
        self._pool.shutdown()
        self._file.close()

    def _checked(self, offset: int, buffer: torch.Tensor) -> torch.Tensor:
        nbytes = buffer.numel()
        if offset % SECTOR or nbytes % SECTOR or not 0 <= offset <= self.nbytes - nbytes:
            raise ValueError(f"{nbytes} bytes at {offset} are not whole sectors within {self.nbytes} bytes")
        return buffer

    def _transfer(self, offset: int, buffer: torch.Tensor, move: Callable[[int, memoryview, bool], None]) -> None:
        aligned = buffer.data_ptr() % SECTOR == 0
        memory = bytes_of(buffer)
        step = len(memory) if aligned else BOUNCE_BYTES
        for begin in range(0, len(memory), step or 1):
            move(offset + begin, memory[begin : begin + step], aligned)

    @torch.inference_mode()
    def _to_device(self, offset: int, buffer: torch.Tensor) -> None:
        host = torch.frombuffer(self._bounce.memory, dtype=torch.uint8)
        for begin in range(0, buffer.numel(), BOUNCE_BYTES):
            part = buffer[begin : begin + BOUNCE_BYTES]
            self._file.read_all(self._bounce.memory[: part.numel()], offset + begin)
            part.copy_(host[: part.numel()])

    def _out(self, offset: int, memory: memoryview, aligned: bool) -> None:
        if not aligned:
            self._bounce.memory[: len(memory)] = memory
            memory = self._bounce.memory[: len(memory)]
        self._file.write_all(memory, offset)

    def _in(self, offset: int, memory: memoryview, aligned: bool) -> None:
        into = memory if aligned else self._bounce.memory[: len(memory)]
        self._file.read_all(into, offset)
        if not aligned:
            memory[:] = into


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one system call brings. straight: whole sectors whose memory is aligned like them."""

    file: File
    offset: int
    target: memoryview
    straight: bool


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


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    nbytes = 0
    for piece in pieces:
        batch.append(piece)
        nbytes += len(piece.target)
        if nbytes >= _BATCH_BYTES or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch
