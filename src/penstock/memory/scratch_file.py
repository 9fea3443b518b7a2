"""Files of what was moved out of memory: KV blocks and activations, written and read back past the page cache."""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from penstock.errors import UserError
from penstock.memory.direct import Arrival
from penstock.memory.files import BOUNCE_BYTES, Bounce, File, bytes_of
from penstock.memory.native_reads import Job, ReadQueue
from penstock.model.pages import SECTOR

_BLOCK_THREADS = 8  # that read KV blocks, so small that a disk is idle with fewer


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
        self._queue: ReadQueue | None = None
        self._bounce = Bounce()

    @property
    def taken_bytes(self) -> int:
        """Disk space that it takes now."""
        return self._file.taken_bytes()

    def write(self, offset: int, buffer: torch.Tensor) -> Future[None]:
        """Writes a uint8 buffer to byte ``offset``; leave the buffer alone until the future is done."""
        self._check(offset, buffer.numel())
        return self._pool.submit(self._transfer, offset, buffer, self._out)

    def read_into(self, offset: int, buffer: torch.Tensor) -> Future[None]:
        """Fills a uint8 buffer from byte ``offset`` on; the bytes are there when the future is done.

        Device memory is filled too, behind the compute that was issued before.
        """
        self._check(offset, buffer.numel())
        if buffer.device.type != "cpu":
            return self._pool.submit(self._to_device, offset, buffer)
        return self._pool.submit(self._transfer, offset, buffer, self._in)

    def read_blocks(self, blocks: Sequence[tuple[int, int]], nbytes: int, into: torch.Tensor) -> Arrival:
        """Brings blocks of so many bytes into a uint8 buffer in host memory, without the interpreter.

        blocks: where each begins in the file, and in the buffer; leave that alone until they are there.
        """
        if self._queue is None:
            self._queue = ReadQueue(_BLOCK_THREADS)
        aligned = into.data_ptr() % SECTOR == 0 and nbytes % SECTOR == 0
        most, pieces = nbytes if aligned else BOUNCE_BYTES, []
        for offset, place in blocks:
            self._check(offset, nbytes)
            for at in range(0, nbytes, most):
                size = min(most, nbytes - at)
                pieces.append((self._file.descriptor, offset + at, place + at, size, aligned, self._file.direct))
        job = Job(np.array(pieces, np.int64).reshape(-1, 6), into)
        self._queue.ask(job)
        return Arrival(job, lambda: self._again(blocks, nbytes, into))

    def _again(self, blocks: Sequence[tuple[int, int]], nbytes: int, into: torch.Tensor) -> None:
        """Read by the interpreter what was refused."""
        for offset, place in blocks:
            self._transfer(offset, into[place : place + nbytes], self._in)

    def close(self) -> None:
        """Waits for what is being written, gives up what is being read; the disk space goes back."""
        self._pool.shutdown()
        if self._queue is not None:
            self._queue.close()
        self._file.close()

    def _check(self, offset: int, nbytes: int) -> None:
        if offset % SECTOR or nbytes % SECTOR or not 0 <= offset <= self.nbytes - nbytes:
            raise ValueError(f"{nbytes} bytes at {offset} are not whole sectors within {self.nbytes} bytes")

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
