"""Compiling kernels, and keeping what was compiled on the disk for the next process."""

import fcntl
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

from penstock.directories import kernel_directory

# what emits vectors, and what numbers the formats that these unpack
_EMITTERS = sorted(path for room in ("compiled", "quant") for path in (Path(__file__).parents[1] / room).glob("*.py"))


def compiled(
    function: Callable[..., Any],
    signature: Any = None,
    fastmath: Collection[str] = (),
    directory: Path | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """A kernel that runs without the interpreter's lock: compiled now, or from the disk.

    signature: None where it has one, which its first call tells; it is compiled then. Such a kernel is called from
    Python alone, for no kernel may be compiled while another is. directory: where it is kept, None for one that is
    compiled anew whenever this package's emitters have changed. options: numba's own.
    """
    directory = directory or kernel_directory(_EMITTERS)
    with _lock(directory), _uninterrupted(), global_compiler_lock:  # numba has one directory for all threads
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(directory)
        try:
            made = numba.njit(signature, nogil=True, cache=True, fastmath=set(fastmath), **options)(function)
        finally:
            numba.config.CACHE_DIR = before
    if signature is None:
        _compile_alone(made, directory)
    kernel: Callable[..., Any] = made
    return kernel


def _compile_alone(kernel: Any, directory: Path) -> None:
    """Have the lock held whenever a kernel is compiled, or read from the disk, for arguments of new types."""
    inner = kernel.compile

    def compile_for(types: Any) -> Any:
        with _lock(directory), _uninterrupted():
            return inner(types)

    kernel.compile = compile_for


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals for Python wait until the compiler is done, some seconds at most.

    LLVM calls Python, where Ctrl-C would be lost, and what numba leaves half done it takes for done.
    """
    came: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():  # which they are for
        handlers = {}
    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, lambda *signalled: came.append(signalled))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
    for signalled, frame in came:
        if callable(handler := handlers[signal.Signals(signalled)]):
            handler(signalled, frame)


def _lock(directory: Path) -> AbstractContextManager[Any]:
    """No other process compiles what is kept in a directory while it is held.

    numba numbers what it keeps of a function, and two processes that each keep another kind at the same time give both
    the same number: whoever reads them later gets one of them for the other.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / "lock", "ab")  # noqa: SIM115  # it is the context
    except OSError:  # numba finds another place then, or keeps nothing
        return nullcontext()
    with suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the file, also where a process is killed
    return lock
