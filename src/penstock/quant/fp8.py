"""Rows of fp8 as they run: a float32 scale before every 128 bytes of float8_e4m3fn."""

from dataclasses import dataclass

from penstock.quant.rows import Rows

SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Fp8(Rows):
    """float8_e4m3fn; 128 neighbours in a row share a scale in float32, which lies before them.

    An element is scale · code, a product in float32 that is rounded to bfloat16: what transformers makes of fp8
    checkpoints (``Fp8Dequantize``). The last group of a row may have fewer codes, filled up to whole blocks.
    """

    @property
    def name(self) -> str:
        """As a page's slice has it for its dtype."""
        return "fp8"

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
