"""A file that has its name only once it is whole."""

import contextlib
import errno
import fcntl
import glob
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from penstock.directories import sync_directory


class PartFile:
    """A file under a temporary name beside ``path``; in a ``with`` it gets its name at the end, or goes on an error.

    part: where it lies until then; file: open for writing. What killed processes left of a file of this name is
    removed. OSError where the disk does not take it.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            code = errno.EISDIR if path.is_dir() else errno.EINVAL  # a device would be replaced by a file
            raise OSError(code, os.strerror(code))
        _remove_abandoned(path)
        self.path, self.part = path, path.with_name(f".{path.name}.{os.getpid()}.part")
        self.file: BinaryIO = self.part.open("wb")
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()

    def finish(self) -> None:
        """Give the file its name once all of it is on disk; an OSError leaves nothing behind."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.part.replace(self.path)
            sync_directory(self.path.absolute().parent)
        except OSError:
            self.discard()
            raise

    def discard(self) -> None:
        """Leave nothing behind, unless it is finished."""
        with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
            self.file.close()
        self.part.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove parts of this file that nobody writes any more: those who do hold a lock."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
