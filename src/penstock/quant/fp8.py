"""Rows of fp8 as they run: a float32 scale before every 128 bytes of float8_e4m3fn."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from penstock.quant.grouped import BLOCK

SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Fp8:
    """float8_e4m3fn; 128 neighbours in a row share a scale in float32, which lies before them.

    An element is scale · code, a product in float32 that is rounded to bfloat16: what transformers makes of fp8
    checkpoints (``Fp8Dequantize``). The last group of a row may have fewer codes, filled up to whole blocks.
    """

    @property
    def name(self) -> str:
        """As a page's slice has it for its dtype."""
        return "fp8"

    @property
    def record(self) -> str:
        """What lies so: the layout of a group."""
        return self.name

    @property
    def bits(self) -> int:
        """Of a code."""
        return 8

    @property
    def group(self) -> int:
        """Elements that share a scale."""
        return 128

    @property
    def record_bytes(self) -> int:
        """Of a whole group."""
        return SCALE_BYTES + self.group

    @property
    def cut_short(self) -> bool:
        """Whether the last group of a row may have fewer elements."""
        return True

    def row_bytes(self, columns: int) -> int:
        """Of a row of so many elements."""
        whole, rest = divmod(columns, self.group)
        return whole * self.record_bytes + (SCALE_BYTES + -(-rest // BLOCK) * BLOCK if rest else 0)

    def nbytes(self, shape: Sequence[int]) -> int:
        """Of an array whose last dimension is the rows'."""
        return prod(shape[:-1]) * self.row_bytes(shape[-1])
