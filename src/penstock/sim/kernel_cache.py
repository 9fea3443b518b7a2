"""Where the simulator's compiled code is kept."""

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba

from penstock.directories import cache_directory


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for others that are compiled: none from Python, which saves half of the work."""
    compiled: Callable[..., Any] = numba.njit(
        function, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )
    return compiled


def kept(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function when it is first called, or take it from the disk; it runs without the interpreter's lock."""
    # numba looks at this function's own file to see whether what it kept is still true, not at those it calls into.
    here = Path(__file__).parent
    sources = sha256(b"".join(path.read_bytes() for path in [here / "prices.py", *sorted(here.glob("kernel_*.py"))]))
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or cache_directory() / "numba")
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(base / sources.hexdigest()[:12])
    try:
        compiled: Callable[..., None] = numba.njit(function, cache=True, nogil=True, error_model="numpy")
    finally:
        numba.config.CACHE_DIR = before
    return compiled
