"""What all packed formats have in common: a row is a run of records of so many elements each, and of so many bytes."""

from collections.abc import Sequence
from math import prod
from typing import Protocol

BLOCK = 32  # elements whose codes lie together; a row's last block is filled up


class Rows(Protocol):
    """A format of packed rows: for every ``group`` of neighbours a record, its numbers first and then its codes."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """As a page's slice has it for its dtype."""
        ...

    @property
    def bits(self) -> int:
        """Of a code."""
        ...

    @property
    def group(self) -> int:
        """Elements of a whole record."""
        ...

    @property
    def record_bytes(self) -> int:
        """Of a whole record."""
        ...

    @property
    def record(self) -> str:
        """What lies so: the layout of a record."""
        return self.name

    @property
    def cut_short(self) -> bool:
        """Whether the last record of a row may have fewer elements."""
        return False

    def row_bytes(self, columns: int) -> int:
        """Of a row of so many elements; ValueError where these are no whole records, and have to be."""
        whole, rest = divmod(columns, self.group)
        if not rest:
            return whole * self.record_bytes
        if not self.cut_short:
            raise ValueError(f"{columns} elements are no whole blocks of {self.name}")
        numbers = self.record_bytes - self.group * self.bits // 8
        return whole * self.record_bytes + numbers + -(-rest // BLOCK) * BLOCK * self.bits // 8

    def nbytes(self, shape: Sequence[int]) -> int:
        """Of an array whose last dimension is the rows'."""
        return prod(shape[:-1]) * self.row_bytes(shape[-1])
