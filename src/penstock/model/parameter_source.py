"""Where the bytes of one parameter lie in files, and reading them."""

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch

from penstock.errors import UserError

COMPARED_BYTES = 16 << 20  # of each parameter at a time

Run = tuple[str, int, int]  # path, offset in the file, bytes


class ParameterSource(Protocol):
    """Where a parameter comes from.

    What a source may have besides: ``extents(start, stop)``, the runs of file bytes that rows consist of, where nothing
    has to be converted; ``by_rows``, false where ``load`` of a few rows costs as much as of all; and ``form``, a packed
    format that it is stored in, with ``packed(start, stop)``, its rows in that format (uint8). Such a one may have
    ``packed_extents(start, stop)``, where these lie in files, or None, and ``turned``, true where they run along the
    last dimension but one.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""

    @property
    def dtype(self) -> str:
        """torch's name of the dtype that ``load`` gives."""

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first dimension; all of it by default."""


@dataclass(frozen=True)
class Raw:
    """A parameter whose bytes, row-major, are the given runs of file bytes one after another."""

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Run, ...]

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((nbytes for _, _, nbytes in self.parts), initial=0))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole parameter."""
        return self._starts[-1]

    def extents(self, start: int | None = None, stop: int | None = None) -> list[Run]:
        """The file bytes of rows [start, stop) of the first dimension, in order (a scalar is one row)."""
        rows = self.shape[0] if self.shape else 1
        first, last, _ = slice(start, stop).indices(rows)
        row_bytes = self.nbytes // rows if rows else 0
        return self.between(first * row_bytes, max(first, last) * row_bytes)

    def between(self, begin: int, end: int) -> list[Run]:
        """The file bytes that make up bytes [begin, end) of the parameter, in order."""
        runs: list[Run] = []
        part = bisect_right(self._starts, begin) - 1
        while begin < end:
            path, offset, nbytes = self.parts[part]
            skipped = begin - self._starts[part]
            taken = min(nbytes - skipped, end - begin)
            if taken:
                runs.append((path, offset + skipped, taken))
            begin += taken
            part += 1
        return runs

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) as a new tensor, through plain buffered reads; exact."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        shape = self.shape
        if shape:
            shape = (len(range(*slice(start, stop).indices(shape[0]))), *shape[1:])
        data = read_runs(self.extents(start, stop))
        return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)


def read_runs(runs: Sequence[Run]) -> bytearray:
    """The bytes of the runs, one after another; UserError where a file is gone or no longer holds them."""
    data = bytearray(sum(nbytes for _, _, nbytes in runs))
    view, at = memoryview(data), 0
    with ExitStack() as opened:
        files = {path: opened.enter_context(_opened(path)) for path in {path for path, _, _ in runs}}
        for path, offset, nbytes in runs:
            file = files[path]
            file.seek(offset)
            if file.readinto(view[at : at + nbytes]) != nbytes:
                raise UserError(f"{Path(path).name} became shorter while it was read: byte {offset + nbytes} is gone.")
            at += nbytes
    return data


def _opened(path: str) -> BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read any more ({error.strerror}): put it back as it was") from error


def same_bytes(one: Raw, other: Raw) -> bool:
    """Whether two parameters hold the same bytes; reads both, in pieces, up to the first difference."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return one.parts == other.parts or all(
        read_runs(one.between(begin, min(begin + COMPARED_BYTES, one.nbytes)))
        == read_runs(other.between(begin, min(begin + COMPARED_BYTES, one.nbytes)))
        for begin in range(0, one.nbytes, COMPARED_BYTES)
    )
