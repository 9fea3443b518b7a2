"""The two memories of a scenario."""

from dataclasses import dataclass, fields
from enum import StrEnum
from fractions import Fraction

from penstock.sim.exact import check_whole


class Duplex(StrEnum):
    """What reads and writes of the external memory's interface cost each other."""

    FULL = "full"
    HALF = "half"
    SERIAL = "serial"


@dataclass(frozen=True)
class Memories:
    """A fast memory of so many bytes and an external one without limit; bandwidths are whole bytes per second.

    Raises UserError for what is no whole number above zero.
    """

    hbm_capacity_bytes: int
    hbm_bytes_per_s: int
    ext_read_bytes_per_s: int
    ext_write_bytes_per_s: int
    ext_internal_bytes_per_s: int
    duplex: Duplex = Duplex.FULL

    def __post_init__(self) -> None:
        check_whole(self, 1, *(field.name for field in fields(self) if field.name != "duplex"))

    @property
    def ext_bytes_per_s(self) -> int:
        """The rate at which external memory can be read, B_e."""
        return min(self.ext_read_bytes_per_s, self.ext_internal_bytes_per_s)

    @property
    def best_share(self) -> Fraction:
        """alpha*: the share of a step's reads that HBM should serve for both memories to end together."""
        return Fraction(self.hbm_bytes_per_s, self.hbm_bytes_per_s + self.ext_bytes_per_s)
