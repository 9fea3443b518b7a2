"""Compiling kernels, and keeping what was compiled on the disk for the next process."""

import fcntl
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba

from penstock.directories import cache_directory

# numba looks at a kernel's own file to see whether what it kept is still true, not at the files that emit its vectors,
# nor at those that number the formats which it unpacks.
_SOURCES = sorted(path for room in ("compiled", "quant") for path in (Path(__file__).parents[1] / room).glob("*.py"))
_EMITTERS = sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:12]
numba.config.CACHE_DIR = str(Path(numba.config.CACHE_DIR or cache_directory() / "numba") / _EMITTERS)


def compiled(function: Callable[..., Any], signature: Any = None, fastmath: Collection[str] = ()) -> Callable[..., Any]:
    """A kernel that runs without the interpreter's lock: compiled now, or from the disk.

    signature: None where it has one, which its first call tells; it is compiled then.
    """
    with _lock():
        made: Callable[..., Any] = numba.njit(signature, nogil=True, cache=True, fastmath=set(fastmath))(function)
    return made


def _lock() -> AbstractContextManager[Any]:
    """No other process compiles while it is held.

    numba numbers what it keeps of a function, and two processes that each keep another kind at the same time give both
    the same number: whoever reads them later gets one of them for the other.
    """
    directory = Path(numba.config.CACHE_DIR)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / "lock", "ab")  # noqa: SIM115  # it is the context
    except OSError:  # numba finds another place then, or keeps nothing
        return nullcontext()
    with suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the file, also where a process is killed
    return lock
