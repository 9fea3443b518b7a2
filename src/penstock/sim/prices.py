"""What the bytes of a step cost in time, and which share of them is best read where.

The functions take plain integers and doubles: the numpy form calls them as they are, with integers of any size, and
the kernels are compiled from the same source.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import gcd

import numpy as np
from numpy.typing import NDArray

from penstock.sim.memories import Duplex
from penstock.sim.result import BINDING
from penstock.sim.scenario import Scenario

FULL, HALF, SERIAL = range(3)
_READING, _WRITING, _INTERNAL, _COMPUTE = map(BINDING.index, ("ext-read", "ext-write", "ext-internal", "compute"))
_DUPLEX = {Duplex.FULL: FULL, Duplex.HALF: HALF, Duplex.SERIAL: SERIAL}

# The bytes of a step, in the order of result.Traffic's fields.
HBM_READ, EXT_READ, HBM_WRITTEN, EXT_WRITTEN, MOVED_HBM_READ, MOVED_HBM_WRITTEN, MOVED_EXT_READ, MOVED_EXT_WRITTEN = (
    range(8)
)
BYTE_KINDS = 8


@dataclass(frozen=True)
class Prices:
    """A scenario's bandwidths in bytes per second, the same divided by what they have in common, and its times."""

    hbm: int
    read: int
    write: int
    internal: int
    duplex: int
    compute_s: float
    fixed_s: float

    @classmethod
    def of(cls, scenario: Scenario) -> "Prices":
        """The prices of a scenario's memories."""
        memories = scenario.memories
        return cls(
            memories.hbm_bytes_per_s,
            memories.ext_read_bytes_per_s,
            memories.ext_write_bytes_per_s,
            memories.ext_internal_bytes_per_s,
            _DUPLEX[memories.duplex],
            scenario.compute_s,
            scenario.fixed_s,
        )

    def reduced(self) -> tuple[int, int, int, int]:
        """The bandwidths divided by their greatest common divisor: exact comparisons need only their ratios."""
        bandwidths = self.hbm, self.read, self.write, self.internal
        common = gcd(*bandwidths)
        return tuple(b // common for b in bandwidths)  # type: ignore[return-value]  # four in, four out

    def step_s(self, hbm: int, read: int, write: int) -> float:
        """Seconds of a step that moves so many bytes at HBM and reads and writes so many at external memory."""
        return step_seconds(
            hbm,
            read,
            write,
            self.hbm,
            self.read,
            self.write,
            self.internal,
            self.duplex,
            self.compute_s,
            self.fixed_s,
        )

    def time(self, kinds: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Seconds of steps, from their bytes [8 kinds, ...], and what binds each, an index into result.BINDING."""
        hbm = kinds[HBM_READ] + kinds[HBM_WRITTEN] + kinds[MOVED_HBM_READ] + kinds[MOVED_HBM_WRITTEN]
        read_bytes, write_bytes = kinds[EXT_READ] + kinds[MOVED_EXT_READ], kinds[EXT_WRITTEN] + kinds[MOVED_EXT_WRITTEN]
        external = read_bytes + write_bytes
        if self.duplex == FULL:
            terms = [(_READING, read_bytes / self.read), (_WRITING, write_bytes / self.write)]
        elif self.duplex == HALF:
            terms = [(_READING, external / self.read)]
        else:
            read, write = read_bytes / self.read, write_bytes / self.write
            both, reading_is_longer = read + write, read >= write
            terms = [
                (_READING, np.where(reading_is_longer, both, 0.0)),
                (_WRITING, np.where(reading_is_longer, 0.0, both)),
            ]
        longest = hbm / self.hbm
        binding = np.zeros(longest.shape, np.uint8)
        for place, term in (*terms, (_INTERNAL, external / self.internal), (_COMPUTE, self.compute_s)):
            np.putmask(binding, term > longest, place)
            np.maximum(longest, term, out=longest)
        longest += self.fixed_s
        return longest, binding

    def split(self, counts: NDArray[np.int64], most: int) -> None:
        """Let the reader take up to `most` bytes of a step's reads [8 kinds] from their copies in external memory."""
        hbm, read, write = step_bytes(counts)
        x = split_bytes(hbm, read, write, most, *self.reduced(), self.duplex)
        counts[HBM_READ] -= x
        counts[EXT_READ] += x


def step_bytes(counts: NDArray[np.int64]) -> tuple[int, int, int]:
    """What a step's bytes [8 kinds] come to at HBM, and read from and written to external memory."""
    c = counts.tolist()
    hbm = c[HBM_READ] + c[HBM_WRITTEN] + c[MOVED_HBM_READ] + c[MOVED_HBM_WRITTEN]
    return hbm, c[EXT_READ] + c[MOVED_EXT_READ], c[EXT_WRITTEN] + c[MOVED_EXT_WRITTEN]


def step_seconds(
    hbm: int,
    read: int,
    write: int,
    b_hbm: int,
    b_read: int,
    b_write: int,
    b_internal: int,
    duplex: int,
    compute_s: float,
    fixed_s: float,
) -> float:
    """T of one step: the longest of its memories and its arithmetic, each quotient one division."""
    external = (read + write) / b_internal
    if duplex == FULL:
        external = max(external, read / b_read, write / b_write)
    elif duplex == HALF:
        external = max(external, (read + write) / b_read)
    else:
        external = max(external, read / b_read + write / b_write)
    return max(hbm / b_hbm, external, compute_s) + fixed_s


def split_bytes(
    hbm: int,
    read: int,
    write: int,
    most: int,
    b_hbm: int,
    b_read: int,
    b_write: int,
    b_internal: int,
    duplex: int,
) -> int:
    """How many bytes, up to `most`, to read from external memory instead so that the step is as short as can be.

    Bandwidths are reduced ones. A byte goes over while T_e with it is less than T_h without it; each line has the most
    bytes x for which `(hbm - x + 1) / b_hbm > a term of T_e with x more bytes read`.
    """
    x = ((hbm + 1) * b_internal - (read + write) * b_hbm - 1) // (b_internal + b_hbm)
    if duplex == FULL:
        x = min(x, ((hbm + 1) * b_read - read * b_hbm - 1) // (b_read + b_hbm))
        x = min(x, ((hbm + 1) * b_write - write * b_hbm - 1) // b_write)
    elif duplex == HALF:
        x = min(x, ((hbm + 1) * b_read - (read + write) * b_hbm - 1) // (b_read + b_hbm))
    else:
        surplus = (hbm + 1) * b_read * b_write - read * b_hbm * b_write - write * b_hbm * b_read
        x = min(x, (surplus - 1) // (b_write * (b_read + b_hbm)))
    return max(0, min(x, most))


def best_items(share_p: int, share_q: int, step_bytes: int, weights_hbm: int, item: int, items: int) -> int:
    """h*: how many of a step's items HBM should serve to serve a share p/q of its bytes, rounded and clipped."""
    wanted = (2 * (share_p * step_bytes - share_q * weights_hbm) + share_q * item) // (2 * share_q * item)
    return min(max(wanted, 0), items)


def passive_limit(share_p: int, share_q: int, step_bytes: int, weights_hbm: int, item: int, hbm_items: int) -> int:
    """How many items to install before HBM would have served a share p/q of a step's bytes."""
    short = share_p * step_bytes - share_q * weights_hbm
    return max(0, -(-short // (share_q * item)) - hbm_items)


def round_share(whole: int, share: Fraction) -> int:
    """round(whole * share), halves up."""
    return (2 * whole * share.numerator + share.denominator) // (2 * share.denominator)
