"""Blocks of GGUF files that run as they are stored: 32 elements, or superblocks of 256, with their numbers among them.

The layouts are those of ggml (ggml-common.h: block_q4_0, …, block_q6_K); ``gguf`` reads them back.
"""

from dataclasses import dataclass

from penstock.quant.rows import BLOCK, Rows

SUPERBLOCK = 256
_BLOCKS = {  # elements, bytes, bits of a code
    "q4_0": (BLOCK, 18, 4),
    "q4_1": (BLOCK, 20, 4),
    "q8_0": (BLOCK, 34, 8),
    "q4_k": (SUPERBLOCK, 144, 4),
    "q5_k": (SUPERBLOCK, 176, 5),
    "q6_k": (SUPERBLOCK, 210, 6),
}
KINDS = tuple(_BLOCKS)


@dataclass(frozen=True, slots=True)
class Ggml(Rows):
    """One of ggml's formats, ``kind`` as GGUF calls it in lower case.

    q4_0: scale · (code - 8). q4_1: scale · code + minimum. q8_0: scale · code, which has a sign. Four-bit codes lie as
    those of ``Grouped`` do. q4_k, q5_k: scale · s · code - minimum · m, where each 32 elements of a superblock have an
    s and an m of six bits. q6_k: scale · s · (code - 32), where each 16 have an s of eight bits. All these products are
    exact in float32, so a sum is what is rounded, once.
    """

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in _BLOCKS:
            raise ValueError(f"{self.kind} is none of {', '.join(KINDS)}")

    @property
    def name(self) -> str:
        """As a page's slice has it for its dtype."""
        return self.kind

    @property
    def bits(self) -> int:
        """Of a code."""
        return _BLOCKS[self.kind][2]

    @property
    def group(self) -> int:
        """Elements of a block."""
        return _BLOCKS[self.kind][0]

    @property
    def record_bytes(self) -> int:
        """Of a block."""
        return _BLOCKS[self.kind][1]
