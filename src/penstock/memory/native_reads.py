"""Reads that go on without the interpreter: threads of compiled code that take them from a pipe.

A thread of Python's takes the interpreter's lock whenever a read begins and ends. Beside a call of many small
operations, which hold that lock, reads then come late, and each hand-over makes the call wait as well.
"""

import os
import signal
import threading
import time
from functools import cache
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from penstock.compiled.kernels import compiled
from penstock.memory.buffers import aligned_buffer
from penstock.memory.files import BOUNCE_BYTES
from penstock.model.pages import SECTOR

# A job is words of 64 bits: whether it is given up, whether a read of it failed; then of each piece its descriptor, its
# offset there, its address, its bytes, whether these are whole sectors aligned like the address, whether the file is
# read directly, and when the read began and ended, in ns, 0 before.
_HEAD, _PIECE = 2, 8
_TARGET, _BEGAN, _ENDED = 2, 6, 7
_MESSAGE = 2  # words: the addresses of a piece and of its job
_WORD = 8
_ATOMIC = 4096  # bytes that a pipe takes in one go
_POLL_US, _POLLS = 20, 1000  # so that whoever waits looks for signals 50 times a second

_long, _int = types.int64, types.int32
_read = types.ExternalFunction("read", _long(_int, _long, _long))
_pread = types.ExternalFunction("pread", _long(_int, _long, _long, _long))
_memcpy = types.ExternalFunction("memcpy", _long(_long, _long, _long))
_usleep = types.ExternalFunction("usleep", _int(_int))
_clock_gettime = types.ExternalFunction("clock_gettime", _int(_int, _long))
_FORGETS = hasattr(os, "posix_fadvise")
if _FORGETS:
    _forget = types.ExternalFunction("posix_fadvise", _int(_int, _long, _long, _int))
else:  # macOS, where another flag of the file keeps it out of the system's cache

    @register_jitable  # type: ignore[untyped-decorator]  # numba leaves it so
    def _forget(file: int, offset: int, nbytes: int, advice: int) -> int:
        return 0


_DONT_NEED, _MONOTONIC = getattr(os, "POSIX_FADV_DONTNEED", 0), time.CLOCK_MONOTONIC


@intrinsic  # type: ignore[untyped-decorator]  # numba leaves it so
def _word(context: Any, address: Any) -> Any:
    """The word at an address, as the thread left it that wrote it."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = builder.inttoptr(given[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(place, "acquire", _WORD, typ=ir.IntType(64))

    return types.int64(types.int64), code


@intrinsic  # type: ignore[untyped-decorator]  # numba leaves it so
def _publish(context: Any, address: Any, value: Any) -> Any:
    """Write a word, and let whoever sees it see all that was written before."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store_atomic(given[1], builder.inttoptr(given[0], ir.IntType(64).as_pointer()), "release", _WORD)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@register_jitable  # type: ignore[untyped-decorator]  # numba leaves it so
def _now(pair: npt.NDArray[np.int64]) -> int:
    _clock_gettime(_MONOTONIC, pair.ctypes.data)
    return int(pair[0] * 1_000_000_000 + pair[1])


@register_jitable  # type: ignore[untyped-decorator]  # numba leaves it so
def _fill(file: int, offset: int, target: int, nbytes: int, needed: int, direct: int) -> bool:
    done = 0
    # A direct read that stops inside a sector has met the end of the file; asking on would be refused.
    while done < nbytes and not (direct and done % SECTOR):
        count = _pread(file, target + done, nbytes - done, offset + done)
        if count < 0:
            return False
        if count == 0:
            break
        done += count
    if not direct:
        _forget(file, offset, nbytes, _DONT_NEED)
    return bool(done >= needed)


@register_jitable  # type: ignore[untyped-decorator]  # numba leaves it so
def _bring(piece: int, bounce: int) -> bool:
    file, offset, target = _word(piece), _word(piece + _WORD), _word(piece + 2 * _WORD)
    nbytes, straight, direct = _word(piece + 3 * _WORD), _word(piece + 4 * _WORD), _word(piece + 5 * _WORD)
    if straight or not direct:
        return bool(_fill(file, offset, target, nbytes, nbytes, direct))
    lead = offset % SECTOR
    needed = lead + nbytes
    came = _fill(file, offset - lead, bounce, needed + -needed % SECTOR, needed, direct)
    _memcpy(target, bounce + lead, nbytes)
    return bool(came)


def _serve(requests: int, bounce: int) -> None:
    message, pair = np.empty(_MESSAGE, np.int64), np.empty(2, np.int64)
    while True:
        got = _read(requests, message.ctypes.data, _MESSAGE * _WORD)
        if got == 0:  # nobody will ask any more
            return
        if got < 0:
            _usleep(_POLL_US)
            continue
        piece, job = message[0], message[1]
        _publish(piece + _BEGAN * _WORD, _now(pair))
        if not _word(job) and not _bring(piece, bounce):
            _publish(job + _WORD, 1)
        _publish(piece + _ENDED * _WORD, _now(pair))


def _ended(first: int, pieces: int, polls: int) -> bool:
    for piece in range(pieces):
        while not _word(first + (_PIECE * piece + _ENDED) * _WORD):
            if polls == 0:
                return False
            polls -= 1
            _usleep(_POLL_US)
    return True


@cache
def reading_kernels() -> tuple[Any, Any]:
    """What threads run until their pipe is closed, and what looks whether pieces have come."""
    return compiled(_serve, "void(int64, int64)"), compiled(_ended, "boolean(int64, int64, int64)")


class Job:
    """Pieces of files on their way into memory, which must stay there as long.

    pieces: (number, 6), the first words of each as above, its place counted from the buffer that lies at ``address``.
    """

    def __init__(self, pieces: npt.NDArray[np.int64], address: int) -> None:
        self._words = np.zeros(_HEAD + _PIECE * len(pieces), np.int64)
        self._pieces = self._words[_HEAD:].reshape(-1, _PIECE)
        self._pieces[:, :_BEGAN] = pieces
        self._pieces[:, _TARGET] += address
        self._over = not len(pieces)

    def over(self, polls: int = 0) -> bool:
        """Whether nothing is written any more; waits for it a little while."""
        self._over = self._over or reading_kernels()[1](self._address(_HEAD), len(self._pieces), polls)
        return self._over

    def wait(self) -> None:
        """Until nothing is written any more; between, Python heeds signals."""
        while not self.over(_POLLS):
            pass

    def give_up(self) -> None:
        """Begin no other read of it."""
        self._words[0] = 1

    @property
    def failed(self) -> bool:
        """Whether a read of it was refused, or met the end of its file."""
        return bool(self._words[1])

    @property
    def span(self) -> tuple[float, float]:
        """When its first read began and its last one ended, in time.perf_counter's seconds; once it is over."""
        if not len(self._pieces):
            now = time.perf_counter()
            return now, now
        behind = time.perf_counter() - time.clock_gettime(_MONOTONIC)
        began, ended = self._pieces[:, _BEGAN].min(), self._pieces[:, _ENDED].max()
        return float(began) / 1e9 + behind, float(ended) / 1e9 + behind

    @property
    def messages(self) -> bytes:
        """What asks a queue for it."""
        asks = np.empty((len(self._pieces), _MESSAGE), np.int64)
        asks[:, 0] = self._address(_HEAD) + _PIECE * _WORD * np.arange(len(self._pieces))
        asks[:, 1] = self._address(0)
        return asks.tobytes()

    def _address(self, word: int) -> int:
        return int(self._words.ctypes.data) + word * _WORD


class ReadQueue:
    """So many threads that bring the pieces of jobs in the order in which they were asked for."""

    def __init__(self, threads: int) -> None:
        requests, self._asks = os.pipe()
        kernel = reading_kernels()[0]
        bounces = [aligned_buffer(BOUNCE_BYTES) for _ in range(threads)]
        served = [
            threading.Thread(target=_thread, args=(kernel, requests, bounce), name=f"penstock-read-{at}", daemon=True)
            for at, bounce in enumerate(bounces)
        ]
        for thread in served:
            thread.start()
        self._close = finalize(self, _end, self._asks, requests, served)

    def ask(self, job: Job) -> None:
        """Have a job done; it must be kept until it is over."""
        asked = job.messages
        for first in range(0, len(asked), _ATOMIC):
            os.write(self._asks, asked[first : first + _ATOMIC])

    def close(self) -> None:
        """Do what was asked for, and end the threads."""
        self._close()


def _thread(kernel: Any, requests: int, bounce: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
    kernel(requests, bounce.data_ptr())


def _end(asks: int, requests: int, threads: list[threading.Thread]) -> None:
    os.close(asks)
    for thread in threads:
        thread.join()
    os.close(requests)
