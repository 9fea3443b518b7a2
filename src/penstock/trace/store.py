"""Where a coded trace's bytes lie: in a file or in memory."""

import contextlib
import os
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

from penstock.directories import sync_directory
from penstock.errors import UserError


class Store(Protocol):
    """Bytes to read, any part of them at any time."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def nbytes(self) -> int:
        """All of them."""
        ...

    def read(self, offset: int, nbytes: int) -> bytes:
        """As many of these as there are."""
        ...


@dataclass(frozen=True)
class MemoryStore:
    """Bytes that are held."""

    data: bytes = field(repr=False)
    name: str = "the trace"

    @property
    def nbytes(self) -> int:
        """See Store."""
        return len(self.data)

    def read(self, offset: int, nbytes: int) -> bytes:
        """See Store."""
        return self.data[offset : offset + nbytes]


@dataclass(frozen=True)
class FileStore:
    """A file, opened anew for every read: chunks are large, and other processes can be handed the same trace.

    UserError where it cannot be read.
    """

    path: Path

    @property
    def name(self) -> str:
        """See Store."""
        return str(self.path)

    @property
    def nbytes(self) -> int:
        """See Store."""
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise self._unreadable(error) from error

    def read(self, offset: int, nbytes: int) -> bytes:
        """See Store."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(nbytes)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be read ({error.strerror}): give a trace that penstock trace wrote")


class Sink:
    """A trace that is being written: in a file under a temporary name, or in memory where there is no path.

    The first ``head_bytes`` are left for ``finish``. UserError where the disk does not take it.
    """

    def __init__(self, path: Path | None, head_bytes: int) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part") if path else None
        try:
            if path is not None and path.is_dir():
                raise IsADirectoryError(0, "it is a directory")
            self._file: BinaryIO = self._part.open("wb") if self._part else BytesIO()
        except OSError as error:
            raise self._unwritable(error) from error
        self.nbytes = 0
        self.write(bytes(head_bytes))

    def write(self, data: bytes) -> None:
        """Append."""
        try:
            self._file.write(data)
        except OSError as error:
            self.discard()
            raise self._unwritable(error) from error
        self.nbytes += len(data)

    def finish(self, head: bytes) -> Store:
        """Write the head, and give the file its name once all of it is on disk."""
        try:
            self._file.seek(0)
            self._file.write(head)
            self._file.flush()
            if isinstance(self._file, BytesIO):
                return MemoryStore(self._file.getvalue())
            os.fsync(self._file.fileno())
            self._file.close()
            assert self._part is not None and self._path is not None
            self._part.replace(self._path)
            sync_directory(self._path.absolute().parent)
        except OSError as error:
            self.discard()
            raise self._unwritable(error) from error
        return FileStore(self._path)

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
            self._file.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self._path} cannot be written ({error.strerror}): name another file")
