"""Where penstock keeps files of its own."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """``$PENSTOCK_CACHE``, else ``penstock`` under ``$XDG_CACHE_HOME``, else ``~/.cache/penstock``."""
    if own := os.environ.get("PENSTOCK_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "penstock"
