"""Files read and written past the page cache, by a few threads at once.

A page cache would hold a second copy of what the pager already holds, and evict it just before it is needed again.
"""

import contextlib
import errno
import fcntl
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
from penstock.model.pages import SECTOR, Extent

BOUNCE_BYTES = 1 << 20  # per thread, for bytes whose place in memory is not that of their sector
_BATCH_BYTES, _BATCH_PIECES = 256 << 10, 16  # small pieces share one task
_F_NOCACHE = 48  # macOS: fcntl's way of saying O_DIRECT


class DirectReader:
    """Copies extents of files into memory with ``threads`` reads of at most ``chunk_bytes`` in flight.

    Whole sectors go straight to their place if memory address and file offset agree modulo a sector; edges and the rest
    go through a small buffer per thread. Where a file system refuses O_DIRECT, reads are buffered and dropped from the
    page cache afterwards. May be used from several threads at once.
    """

    def __init__(self, threads: int = 8, chunk_bytes: int = 4 << 20) -> None:
        self._chunk_bytes = chunk_bytes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="penstock-read")
        self._files: dict[str, _File] = {}
        self._opening = threading.Lock()
        self._bounce = _Bounce()

    def read(self, extents: Sequence[Extent], buffer: torch.Tensor, start: int = 0) -> int:
        """Fills ``buffer`` (uint8, contiguous) from byte ``start`` on with the extents; returns the bytes read.

        Raises UserError, naming the file, where one is missing, cannot be read, or is shorter than the extents say.
        """
        memory, address = _memory(buffer), buffer.data_ptr()
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

    def _file(self, path: str) -> "_File":
        with self._opening:
            if path not in self._files:
                self._files[path] = _File(path, os.O_RDONLY)
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
        self._file = _File(str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL)
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
        self._bounce = _Bounce()

    @property
    def taken_bytes(self) -> int:
        """Disk space that it takes now."""
        return self._file.taken_bytes()

    def write(self, offset: int, buffer: torch.Tensor) -> Future[None]:
        """Writes a uint8 buffer to byte ``offset``; leave the buffer alone until the future is done."""
        return self._pool.submit(self._transfer, offset, self._checked(offset, buffer), self._out)

    def read_into(self, offset: int, buffer: torch.Tensor) -> Future[None]:
        """Fills a uint8 buffer from byte ``offset`` on; the bytes are there when the future is done."""
        return self._pool.submit(self._transfer, offset, self._checked(offset, buffer), self._in)

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
        memory = _memory(buffer)
        step = len(memory) if aligned else BOUNCE_BYTES
        for begin in range(0, len(memory), step or 1):
            move(offset + begin, memory[begin : begin + step], aligned)

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


class _File:
    """A descriptor that goes past the page cache (``direct``) where its file system allows that."""

    def __init__(self, path: str, flags: int) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UserError(f"cannot open {path}: {error.strerror}") from error
        self.direct = self._set_direct(True)

    def read_all(self, memory: memoryview, offset: int, needed: int | None = None) -> None:
        """Fills memory from the file; at the end of the file, ``needed`` bytes (default: all) will do."""
        needed = len(memory) if needed is None else needed
        done = self._repeat(os.preadv, "read", memory, offset)
        if done < needed:
            raise UserError(
                f"{self.path} ends at byte {offset + done:,} where {offset + needed:,} are needed: "
                "it is truncated; fetch it again"
            )
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, len(memory), os.POSIX_FADV_DONTNEED)

    def write_all(self, memory: memoryview, offset: int) -> None:
        """Writes all of memory to the file."""
        done = self._repeat(os.pwritev, "write", memory, offset)
        if done < len(memory):  # the file is as long as this already, so what stopped short had no more room
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise UserError(f"cannot write {self.path} at byte {offset + done:,}: {full.strerror}") from full

    def reserve(self, nbytes: int, sparse: bool) -> None:
        """Makes the file so long; takes its disk space now, so that no later write runs out of it, unless sparse."""
        if nbytes and not sparse and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._descriptor, 0, nbytes)
        else:
            os.ftruncate(self._descriptor, nbytes)

    def taken_bytes(self) -> int:
        """Disk space that the file takes, in blocks of 512 bytes as POSIX counts it."""
        return os.fstat(self._descriptor).st_blocks * 512

    def close(self) -> None:
        os.close(self._descriptor)

    def _repeat(
        self, call: Callable[[int, list[memoryview], int], int], verb: str, memory: memoryview, offset: int
    ) -> int:
        done = 0
        # A direct transfer that stops inside a sector has met the end of the file; asking on would be refused.
        while done < len(memory) and not (self.direct and done % SECTOR):
            try:
                count = call(self._descriptor, [memory[done:]], offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and self.direct:
                    self.direct = self._set_direct(False)  # some file systems refuse only when it comes to reading
                    continue
                raise UserError(f"cannot {verb} {self.path} at byte {offset + done:,}: {error.strerror}") from error
            if count == 0:
                break
            done += count
        return done

    def _set_direct(self, wanted: bool) -> bool:
        if hasattr(os, "O_DIRECT"):
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
            with contextlib.suppress(OSError):  # tmpfs and some network file systems say EINVAL
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | (os.O_DIRECT if wanted else 0))
                return wanted
        else:
            fcntl.fcntl(self._descriptor, _F_NOCACHE, int(wanted))
        return False


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one system call brings. straight: whole sectors whose memory is aligned like them."""

    file: _File
    offset: int
    target: memoryview
    straight: bool


class _Bounce(threading.local):
    """An aligned buffer for each thread that needs one."""

    def __init__(self) -> None:
        self.memory = _memory(aligned_buffer(BOUNCE_BYTES))


def _memory(buffer: torch.Tensor) -> memoryview:
    if buffer.dtype != torch.uint8 or not buffer.is_contiguous():
        raise ValueError(
            f"bytes move through contiguous uint8 tensors, not {buffer.dtype} of strides {buffer.stride()}"
        )
    return buffer.numpy().data.cast("B")


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
