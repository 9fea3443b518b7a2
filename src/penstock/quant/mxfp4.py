"""Rows of MXFP4 as they run: blocks of 32 elements, a byte of scale and 16 bytes of codes each."""

from dataclasses import dataclass

from penstock.quant.rows import BLOCK, Rows

ELEMENTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)  # of the codes
EXPONENT_SHIFT, SMALLEST = 23, 0x00400000  # a scale's byte is a float32's exponent; 0 is 2^-127, which is subnormal


@dataclass(frozen=True, slots=True)
class Mxfp4(Rows):
    """Four-bit floats (E2M1) of which 32 neighbours in a row share a power of two (E8M0), which lies before them.

    An element is 2^(scale - 127) · ELEMENTS[code]: exact in bfloat16. Codes lie as those of ``Grouped`` do, so that a
    block is one of GGUF's (ggml-common.h: block_mxfp4). Source: OCP Microscaling Formats (MX) v1.0.
    """

    @property
    def name(self) -> str:
        """As a page's slice has it for its dtype."""
        return "mxfp4"

    @property
    def bits(self) -> int:
        """Of a code."""
        return 4

    @property
    def group(self) -> int:
        """Elements that share a scale."""
        return BLOCK

    @property
    def record_bytes(self) -> int:
        """Of a block."""
        return 1 + BLOCK // 2
