"""A directory for what the processes of a simulation share, which does not outlive them."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import UserError

_PREFIX = "penstock-simulate-"
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextlib.contextmanager
def shared_directory() -> Iterator[Path]:
    """A new directory among the system's temporary ones (``TMPDIR``), removed at the end.

    This process holds a lock on it, which goes with the process however it ends: the next one removes what has none.
    Raises UserError where it cannot be made.
    """
    try:
        directory, lock = _made()
    except OSError as error:
        told = f"no directory for traces that processes share can be made ({error.strerror})"
        raise UserError(f"{told}: set TMPDIR to one with room, or run with --jobs 1") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _made() -> tuple[Path, int]:
    """A new directory, and the descriptor that holds its lock."""
    root = Path(tempfile.gettempdir())
    _remove_abandoned(root)
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(directory, _FLAGS)
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if directory.exists():
                return directory, lock
            os.close(lock)  # before it was locked, another process took it for an abandoned one


def _remove_abandoned(root: Path) -> None:
    """Remove this person's directories that no process holds."""
    for left in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(left, _FLAGS)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)
