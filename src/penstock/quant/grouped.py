"""Group-wise integers: what a matrix looks like with a few bits an element, and how many bytes that takes."""

import re
from dataclasses import dataclass

from penstock.quant.rows import Rows

BITS = (4, 8)
GROUPS = (32, 64, 128)
# How codes are chosen, and how rows of any packed format lie: raised with a change, so that page caches are built anew.
ROUNDING = 2
PARAMETER_BYTES = 4  # of a group: its scale and its minimum, in half precision
_NAME = re.compile(r"int(\d+)g(\d+)(-plain)?")


@dataclass(frozen=True, slots=True)
class Grouped(Rows):
    """Unsigned integers of ``bits`` bits; ``group`` neighbours in a row share a scale and a minimum.

    An element is minimum + scale · code. A row is a run of bytes of its own: for each group its scale, its minimum
    (both in half precision) and its codes, of which the last group of a row may have fewer. Four-bit codes of 32
    elements take 16 bytes: byte j holds element j in its low half and element j + 16 in its high half.

    plain: rounded between a group's least and largest element, not fitted: no other bytes mean anything else.
    """

    bits: int
    group: int = 64
    plain: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.group not in GROUPS:
            raise ValueError(f"{self.bits} bits in groups of {self.group}: there are {BITS} and {GROUPS}")

    @property
    def name(self) -> str:
        """As a page's slice has it for its dtype: ``int4g64``, or ``int4g64-plain``."""
        return f"int{self.bits}g{self.group}{'-plain' if self.plain else ''}"

    @classmethod
    def named(cls, name: str) -> "Grouped | None":
        """The format of that name; None where it is none's."""
        found = _NAME.fullmatch(name)
        if found is None or int(found[1]) not in BITS or int(found[2]) not in GROUPS:
            return None
        return cls(int(found[1]), int(found[2]), found[3] is not None)

    @property
    def record(self) -> str:
        """What lies so: the layout of a group."""
        return f"int{self.bits}"

    @property
    def record_bytes(self) -> int:
        """Of a whole group."""
        return PARAMETER_BYTES + self.group * self.bits // 8

    @property
    def cut_short(self) -> bool:
        """Whether the last group of a row may have fewer elements."""
        return True
