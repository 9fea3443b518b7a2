"""Blocks of GGUF files that run as they are stored: 32 elements with one or two numbers in half precision before them.

The layouts are those of ggml (ggml-common.h: block_q4_0, block_q4_1, block_q8_0); ``gguf`` reads them back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from penstock.quant.grouped import BLOCK

_NUMBERS = {"q4_0": 1, "q4_1": 2, "q8_0": 1}  # in half precision, before a block's codes
_BITS = {"q4_0": 4, "q4_1": 4, "q8_0": 8}
KINDS = tuple(_BITS)


@dataclass(frozen=True, slots=True)
class Ggml:
    """One of ggml's formats, ``kind`` as GGUF calls it in lower case.

    q4_0: scale · (code - 8). q4_1: scale · code + minimum. q8_0: scale · code, which has a sign. Four-bit codes lie as
    those of ``Grouped`` do. Elements are exact in float32, but for the sum of q4_1, which is rounded once.
    """

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in _BITS:
            raise ValueError(f"{self.kind} is none of {', '.join(KINDS)}")

    @property
    def name(self) -> str:
        """As a page's slice has it for its dtype."""
        return self.kind

    @property
    def record(self) -> str:
        """What lies so: the layout of a block."""
        return self.kind

    @property
    def bits(self) -> int:
        """Of a code."""
        return _BITS[self.kind]

    @property
    def group(self) -> int:
        """Elements that share their numbers."""
        return BLOCK

    @property
    def parameter_bytes(self) -> int:
        """Of these numbers."""
        return 2 * _NUMBERS[self.kind]

    @property
    def record_bytes(self) -> int:
        """Of a block."""
        return self.parameter_bytes + BLOCK * self.bits // 8

    def row_bytes(self, columns: int) -> int:
        """Of a row of so many elements, which are whole blocks."""
        if columns % BLOCK:
            raise ValueError(f"{columns} elements are no whole blocks of {self.kind}")
        return columns // BLOCK * self.record_bytes

    def nbytes(self, shape: Sequence[int]) -> int:
        """Of an array whose last dimension is the rows'."""
        return prod(shape[:-1]) * self.row_bytes(shape[-1])
