"""The input of a job, line by line: plain, gzip or zstd, never more than one line in memory."""

import importlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from penstock.errors import UserError
from penstock.jobs.errors import JobStopped

LONGEST_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"
_SKIPPED_BYTES = 1 << 16
_READ_BYTES = 4096  # of a compressed file at a time: 4 bytes of zstd can be 128 KiB of text


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank, without its end. number: from 1. fault: why there is no data, or None."""

    number: int
    data: bytes = b""
    fault: str | None = None


def read_lines(path: str | os.PathLike[str], longest: int = LONGEST_BYTES) -> Iterator[Line]:
    """The lines of a file; blank ones are counted and left out, and so is a byte order mark.

    A line of more than ``longest`` bytes becomes a fault, its rest is passed over. UserError: no such file, not a file,
    or a compressed file that is torn or damaged. JobStopped: the file cannot be read any further.
    """
    name = Path(path).name
    with _opened(path) as raw:
        codec = _codec(raw.peek(4)[:4], name)
        file = io.BufferedReader(_Members(raw, codec, name)) if codec else raw
        try:
            yield from _lines(file, longest)
        except OSError as error:
            raise JobStopped(
                f"{path} cannot be read any further ({error.strerror}): the same command goes on from here"
            ) from error


def _lines(file: io.BufferedIOBase, longest: int) -> Iterator[Line]:
    number = 0
    while data := file.readline(longest + 1):
        number += 1
        if len(data) > longest and not data.endswith(b"\n"):
            nbytes, data = len(data), b""
            while rest := file.readline(_SKIPPED_BYTES):
                nbytes += len(rest.rstrip(b"\n"))
                if rest.endswith(b"\n"):
                    break
            yield Line(number, fault=f"the line is {nbytes:,} bytes long: at most {longest:,} are read")
            continue
        if number == 1:
            data = data.removeprefix(_BOM)
        if data and not data.isspace():
            yield Line(number, data.rstrip(b"\r\n"))


def _opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a directory: give a file of JSON lines")
        if not stat.S_ISREG(mode):
            raise UserError(
                f"{path} is a pipe or a device: write it to a file first, since a job reads its input twice"
            )
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


class _Decompressor(Protocol):
    """What zlib's, the standard library's and zstandard's objects for one member have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Codec:
    """How a member of a compressed file is read, and what is raised where it is damaged."""

    name: str
    member: Callable[[], _Decompressor]
    error: type[Exception]


def _codec(head: bytes, name: str) -> _Codec | None:
    """What a file's first four bytes say it is compressed with."""
    if head.startswith(b"\x1f\x8b"):
        return _Codec("gzip", lambda: zlib.decompressobj(wbits=31), zlib.error)
    skippable = head[1:] == b"\x2a\x4d\x18" and head[0] >> 4 == 5  # parallel compressors write such a frame first
    return _zstd(name) if head == b"\x28\xb5\x2f\xfd" or skippable else None


def _zstd(name: str) -> _Codec:
    for module, maker in (("compression.zstd", _standard_zstd), ("zstandard", _third_party_zstd)):
        try:
            return maker(importlib.import_module(module))
        except ImportError:
            continue
    raise UserError(f"{name} is compressed with zstd: pip install zstandard, or decompress it first (zstd -d {name})")


def _standard_zstd(module: Any) -> _Codec:
    return _Codec("zstd", module.ZstdDecompressor, module.ZstdError)


def _third_party_zstd(module: Any) -> _Codec:
    return _Codec("zstd", lambda: module.ZstdDecompressor().decompressobj(), module.ZstdError)


class _Members(io.RawIOBase):
    """The text of a compressed file's members, one after another; it is an error where the last one has no end."""

    def __init__(self, file: io.BufferedReader, codec: _Codec, name: str) -> None:
        self._file, self._codec, self._name = file, codec, name
        self._member: _Decompressor | None = None
        self._left = b""  # read, and part of the next member
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill a writable buffer of bytes as far as there is text now; 0 at the end."""
        while not self._ready:
            if not self._decompress():
                return 0
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _decompress(self) -> bool:
        """Some more text, perhaps none; False at the end of the file."""
        data = self._left or self._file.read(_READ_BYTES)
        self._left = b""
        if not data:
            if self._member is not None:
                self._damaged("it ends in the middle")
            return False
        if self._member is None:
            data = data.lstrip(b"\0")  # padding between members
            if not data:
                return True
            self._member = self._codec.member()
        try:
            self._ready = memoryview(self._member.decompress(data))
        except self._codec.error as error:
            self._damaged(str(error))
        if self._member.eof:
            self._left, self._member = self._member.unused_data, None
        return True

    def _damaged(self, reason: str) -> NoReturn:
        raise UserError(
            f"{self._name} is not a whole {self._codec.name} file ({reason}): download or compress it again"
        )
