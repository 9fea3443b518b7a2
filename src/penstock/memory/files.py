"""A file that is read and written past the page cache, and the bytes that go there and come back."""

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from weakref import finalize

import torch

from penstock.errors import UserError
from penstock.memory.buffers import aligned_buffer
from penstock.model.pages import SECTOR

BOUNCE_BYTES = 1 << 20  # per thread, for bytes whose place in memory is not that of their sector
_F_NOCACHE = 48  # macOS: fcntl's way of saying O_DIRECT


class File:
    """A descriptor that goes past the page cache (``direct``) where its file system allows that."""

    def __init__(self, path: str, flags: int) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UserError(f"cannot open {path}: {error.strerror}") from error
        self._close = finalize(self, os.close, self._descriptor)  # once: by close, or when nobody has it
        self.direct = self._set_direct(True)

    @property
    def descriptor(self) -> int:
        """For reads of compiled code; none is to be left to it that is under way when this is closed."""
        return self._descriptor

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
        """Closes the descriptor, if it is still open; nothing may be under way."""
        self._close()

    def _repeat(
        self, call: Callable[[int, list[memoryview], int], int], verb: str, memory: memoryview, offset: int
    ) -> int:
        done = 0
        # A direct transfer that stops inside a sector has met the end of the file; asking on would be refused.
        while done < len(memory) and not (self.direct and done % SECTOR):
            direct = self.direct  # which another thread may find out to be refused meanwhile
            try:
                count = call(self._descriptor, [memory[done:]], offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and direct:
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


class Bounce(threading.local):
    """An aligned buffer for each thread that needs one."""

    def __init__(self) -> None:
        self.memory = bytes_of(aligned_buffer(BOUNCE_BYTES))


def bytes_of(buffer: torch.Tensor) -> memoryview:
    """The memory of a contiguous uint8 tensor."""
    if buffer.dtype != torch.uint8 or not buffer.is_contiguous():
        raise ValueError(
            f"bytes move through contiguous uint8 tensors, not {buffer.dtype} of strides {buffer.stride()}"
        )
    return buffer.numpy().data.cast("B")
