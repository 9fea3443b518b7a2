"""The directory of a run's own under which KV and activations spill to disk."""

import glob
import os
import shutil
import socket
import tempfile
from pathlib import Path

from penstock.directories import cache_directory
from penstock.errors import UserError


def offload_root(asked: str | os.PathLike[str] | None) -> Path:
    """The directory that runs make theirs in, by default under the user's cache; what dead processes left is removed.

    Raises UserError where it cannot be made or written to.
    """
    root = Path(asked) if asked is not None else cache_directory() / "offload"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--offload-dir {root} cannot be made: {error.strerror}") from error
    if not os.access(root, os.W_OK):
        raise UserError(f"--offload-dir {root} is not writable: give another one")
    ours = _prefix()
    for left in root.glob(f"{glob.escape(ours)}*"):
        pid = left.name.removeprefix(ours).split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return root


def make_offload(root: Path) -> Path:
    """A new directory of this process's own; UserError where the disk takes none, or the root is gone."""
    try:
        return Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=root))
    except OSError as error:
        raise UserError(f"--offload-dir {root} takes no directory ({error.strerror}): give another one") from error


def remove_offload(directory: Path) -> None:
    """Remove a run's directory; its files have no names by then."""
    shutil.rmtree(directory, ignore_errors=True)


def _prefix() -> str:
    """How directories of this host's processes begin; who lives on another, or in a container, is not known."""
    return f"run-{socket.gethostname()}-"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
