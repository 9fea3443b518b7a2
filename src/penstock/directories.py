"""Where penstock keeps files of its own, that their names last, and how names are shown."""

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path


def cache_directory() -> Path:
    """``$PENSTOCK_CACHE``, else ``penstock`` under ``$XDG_CACHE_HOME``, else ``~/.cache/penstock``."""
    if own := os.environ.get("PENSTOCK_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "penstock"


def kernel_directory(sources: Iterable[Path]) -> Path:
    """Where kernels that are made of these sources are kept: in ``$NUMBA_CACHE_DIR``, else in the cache directory.

    numba looks at a kernel's own file alone to see whether what it kept is still true.
    """
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or cache_directory() / "numba")
    return base / sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shown(name: str) -> str:
    """A file's name as text: its bytes need not be UTF-8, and what is not cannot be written or drawn."""
    return name.encode(errors="replace").decode()
