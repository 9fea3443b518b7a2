"""Where the simulator's compiled code is kept."""

import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from penstock.directories import cache_directory

_HERE = Path(__file__).parent
# Kernels make no arrays: references to those that they are given need not be counted.
_PLAIN: Mapping[str, Any] = MappingProxyType({"error_model": "numpy", "_nrt": False})


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for others that are compiled: none from Python, which saves half of the work."""
    import numba

    compiled: Callable[..., Any] = numba.njit(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_PLAIN)
    return compiled


def piece(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that is called in one place as a piece of its caller.

    A part is compiled by itself and once more within each of its callers, of theirs, and so on.
    """
    import numba

    compiled: Callable[..., Any] = numba.njit(function, inline="always", **_PLAIN)
    return compiled


def kept(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function when it is first called, or take it from the disk; it runs without the interpreter's lock."""
    import numba

    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_home())
    try:
        compiled: Callable[..., None] = numba.njit(function, cache=True, nogil=True, **_PLAIN)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


def is_compiled() -> bool:
    """Whether the kernels as they are were compiled here before, by the names and times of files; without numba."""
    source_s = (_HERE / "kernel_step.py").stat().st_mtime
    return any(index.stat().st_mtime >= source_s for index in _home().rglob("kernel_step.*.nbi"))


def _home() -> Path:
    """The directory of these sources: numba looks at a function's own file alone to see whether it is as it was."""
    sources = [_HERE / "prices.py", *sorted(_HERE.glob("kernel_*.py"))]
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or cache_directory() / "numba")
    return base / sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
