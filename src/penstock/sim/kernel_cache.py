"""Where the simulator's compiled code is kept."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from penstock.directories import kernel_directory

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
    """Compile a function when it is first called, or take it from the disk."""
    from penstock.compiled.kernels import compiled  # imports numba

    return compiled(function, directory=_home(), **_PLAIN)


def is_compiled() -> bool:
    """Whether the kernels as they are were compiled here before, by the names and times of files; without numba."""
    source_s = (_HERE / "kernel_step.py").stat().st_mtime
    return any(index.stat().st_mtime >= source_s for index in _home().rglob("kernel_step.*.nbi"))


def _home() -> Path:
    return kernel_directory([_HERE / "prices.py", *sorted(_HERE.glob("kernel_*.py"))])
