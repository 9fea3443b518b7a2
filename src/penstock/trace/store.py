"""Where a coded trace's bytes lie: in a file or in memory."""

import os
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from penstock.errors import UserError
from penstock.part_file import PartFile


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
    """A file as it was when it was first looked at, opened anew for every read.

    Chunks are large, and other processes can be handed the same trace. version: what tells the file from another of
    its name, and from itself written to. UserError where it cannot be read, or is not that file any more.
    """

    path: Path
    nbytes: int
    version: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file with this name now."""
        try:
            found = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        return cls(path, found.st_size, _version(found))

    @property
    def name(self) -> str:
        """See Store."""
        return str(self.path)

    def read(self, offset: int, nbytes: int) -> bytes:
        """See Store."""
        try:
            with self.path.open("rb") as file:
                if _version(os.fstat(file.fileno())) != self.version:
                    raise UserError(f"{self.path} was written to while it was read: run this again when it is whole")
                file.seek(offset)
                return file.read(nbytes)
        except OSError as error:
            raise _unreadable(self.path, error) from error


class Sink:
    """A trace that is being written: in a file under a temporary name, or in memory where there is no path.

    The first ``head_bytes`` are left for ``finish``. What a killed process left of a trace of this name is removed.
    UserError where the disk does not take it.
    """

    def __init__(self, path: Path | None, head_bytes: int) -> None:
        self._path = path
        try:
            self._part = None if path is None else PartFile(path)
        except OSError as error:
            raise self._unwritable(error) from error
        self._file: BinaryIO = BytesIO() if self._part is None else self._part.file
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
            if isinstance(self._file, BytesIO):
                return MemoryStore(self._file.getvalue())
            assert self._part is not None
            self._part.finish()
        except OSError as error:
            self.discard()
            raise self._unwritable(error) from error
        return FileStore.of(self._part.path)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._part is not None:
            self._part.discard()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self._path} cannot be written ({error.strerror}): name another file")


def _version(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({error.strerror}): give a trace that penstock trace wrote")
