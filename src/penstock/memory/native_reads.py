"""Reads that go on without the interpreter: threads of compiled code that take them from a pipe.

A thread of Python's takes the interpreter's lock whenever a read begins and ends. Beside a call of many small
operations, which hold that lock, reads then come late, and each hand-over makes the call wait as well.
"""

import os
import select
import signal
import threading
import time
from functools import cache
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from penstock.compiled.kernels import compiled
from penstock.errors import UserError
from penstock.memory.buffers import aligned_buffer
from penstock.memory.files import BOUNCE_BYTES, bytes_of
from penstock.model.pages import SECTOR

# A job is words of 64 bits: whether it is given up, whether a read of it failed, whether it was asked for; then of each
# piece its descriptor, its offset there, its address, its bytes, whether these are whole sectors aligned like the
# address, whether the file is read directly, and when the read began and ended, in ns, 0 before.
_HEAD, _PIECE = 3, 8
_GIVEN_UP, _FAILED, _ASKED = range(_HEAD)
_NBYTES, _TARGET, _BEGAN, _ENDED = 3, 2, 6, 7
_MESSAGE = 2  # words: the addresses of a piece and of its job
_WORD = 8
_ATOMIC = select.PIPE_BUF // (_MESSAGE * _WORD) * _MESSAGE * _WORD  # bytes that a pipe takes in one go
_POLL_US, _POLLS = 20, 300  # a nap takes some 70 us: whoever waits looks for signals about 50 times a second

_long, _int = types.int64, types.int32
_read = types.ExternalFunction("read", _long(_int, _long, _long))
_write = types.ExternalFunction("write", _long(_int, _long, _long))
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
        if not _word(job + _GIVEN_UP * _WORD) and not _bring(piece, bounce):
            _publish(job + _FAILED * _WORD, 1)
        _publish(piece + _ENDED * _WORD, _now(pair))


def _ended(first: int, pieces: int, polls: int) -> bool:
    for piece in range(pieces):
        while not _word(first + (_PIECE * piece + _ENDED) * _WORD):
            if polls == 0:
                return False
            polls -= 1
            _usleep(_POLL_US)
    return True


def _ask(asks: int, messages: int, nbytes: int, job: int) -> None:
    _publish(job + _ASKED * _WORD, 1)
    done = 0
    while done < nbytes:
        put = _write(asks, messages + done, min(_ATOMIC, nbytes - done))
        if put < 0:  # a signal, which is the interpreter's
            _usleep(_POLL_US)
        else:
            done += put


@cache
def reading_kernels() -> tuple[Any, Any, Any]:
    """What threads run until their pipe is closed, what asks them, and what looks whether pieces have come."""
    return (
        compiled(_serve, "void(int64, int64)"),
        compiled(_ask, "void(int64, int64, int64, int64)"),
        compiled(_ended, "boolean(int64, int64, int64)"),
    )


class Job:
    """Pieces of files on their way into a buffer, which it keeps alive.

    pieces: (number, 6), the first words of each as above, its place counted from the beginning of the buffer. Raises
    ValueError where that is not within.
    """

    def __init__(self, pieces: npt.NDArray[np.int64], buffer: torch.Tensor) -> None:
        room = len(bytes_of(buffer))
        places = pieces[:, _TARGET]
        if len(pieces) and (places.min() < 0 or (places + pieces[:, _NBYTES]).max() > room):
            raise ValueError(f"pieces of a read lie outside its buffer of {room:,} bytes")
        self._buffer = buffer
        self._words = np.zeros(_HEAD + _PIECE * len(pieces), np.int64)
        self._pieces = self._words[_HEAD:].reshape(-1, _PIECE)
        self._pieces[:, :_BEGAN] = pieces
        self._pieces[:, _TARGET] += buffer.data_ptr()
        self._over = not len(pieces)

    @property
    def nbytes(self) -> int:
        """Of all its pieces."""
        return int(self._pieces[:, _NBYTES].sum())

    def over(self, polls: int = 0) -> bool:
        """Whether nothing is written any more; waits for it a little while."""
        if not self._words[_ASKED]:
            return True
        self._over = self._over or reading_kernels()[2](self._address(_HEAD), len(self._pieces), polls)
        return self._over

    def wait(self) -> None:
        """Until nothing is written any more; between, Python heeds signals."""
        while not self.over(_POLLS):
            pass

    def give_up(self) -> None:
        """Begin no other read of it."""
        self._words[_GIVEN_UP] = 1

    @property
    def given_up(self) -> bool:
        """Whether bytes may be missing that nobody waits for."""
        return bool(self._words[_GIVEN_UP])

    @property
    def failed(self) -> bool:
        """Whether a read of it was refused, or met the end of its file."""
        return bool(self._words[_FAILED])

    @property
    def span(self) -> tuple[float, float]:
        """When its first read began and its last one ended, in time.perf_counter's seconds; once it is over."""
        if not len(self._pieces):
            now = time.perf_counter()
            return now, now
        behind = time.perf_counter() - time.clock_gettime(_MONOTONIC)
        began, ended = self._pieces[:, _BEGAN].min(), self._pieces[:, _ENDED].max()
        return float(began) / 1e9 + behind, float(ended) / 1e9 + behind

    def ask(self, asks: int) -> None:
        """Write to the pipe that threads are asked through; in one call, which no signal of Python's cuts in two."""
        messages = np.empty((len(self._pieces), _MESSAGE), np.int64)
        messages[:, 0] = self._address(_HEAD) + _PIECE * _WORD * np.arange(len(self._pieces))
        messages[:, 1] = self._address(0)
        reading_kernels()[1](asks, messages.ctypes.data, messages.nbytes, self._address(0))

    def _address(self, word: int) -> int:
        return int(self._words.ctypes.data) + word * _WORD


class ReadQueue:
    """So many threads that bring the pieces of jobs in the order in which they were asked for.

    Raises UserError where the system starts no thread. May be used from several threads at once.
    """

    def __init__(self, threads: int) -> None:
        requests, self._asks = os.pipe()
        served: list[threading.Thread] = []
        self._close = finalize(self, _end, self._asks, requests, served)
        self._lock, self._jobs = threading.Lock(), list[Job]()
        kernel = reading_kernels()[0]
        for at in range(threads):
            given = kernel, requests, aligned_buffer(BOUNCE_BYTES)
            thread = threading.Thread(target=_thread, args=given, name=f"penstock-read-{at}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self._close()
                raise UserError(f"no thread can be started to read files: {error}") from error
            served.append(thread)

    def ask(self, job: Job) -> None:
        """Have a job done; it is kept until it is over, whoever else lets go of it."""
        with self._lock:
            self._jobs = [one for one in self._jobs if not one.over()]
            self._jobs.append(job)
            job.ask(self._asks)

    def close(self) -> None:
        """Give up what has not been read yet, wait for reads under way, and end the threads."""
        for job in self._jobs:
            job.give_up()
        self._close()


def _thread(kernel: Any, requests: int, bounce: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
    kernel(requests, bounce.data_ptr())


def _end(asks: int, requests: int, threads: list[threading.Thread]) -> None:
    os.close(asks)
    for thread in threads:
        thread.join()
    os.close(requests)
