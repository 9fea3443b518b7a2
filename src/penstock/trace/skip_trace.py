"""What a skip trace is to those who replay it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 64

# [step, layer, word] of uint64: bit t % 64 of word t // 64 is set where token t is skipped.
SkipBits = NDArray[np.uint64]


@dataclass(frozen=True)
class TraceShape:
    """How large a trace is: step i of it is the decode step that writes token `prefill_tokens + i`."""

    prefill_tokens: int
    steps: int
    layers: int

    @property
    def tokens(self) -> int:
        """All token positions, prefill and decode."""
        return self.prefill_tokens + self.steps

    @property
    def words(self) -> int:
        """uint64 words of one (step, layer)."""
        return -(-self.tokens // WORD_BITS)

    @property
    def step_bytes(self) -> int:
        """The size of one step's bits."""
        return 8 * self.layers * self.words

    def steps_in(self, nbytes: int) -> int:
        """How many steps' bits so many bytes hold; one at least, and no more than there are."""
        return max(1, min(nbytes // self.step_bytes, self.steps))


class SkipTrace(Protocol):
    """A trace that can be read from its start, any number of times, in windows of steps.

    Bits of tokens that do not exist yet (t >= prefill_tokens + step) are never set.
    """

    @property
    def shape(self) -> TraceShape:
        """Its size."""
        ...

    def windows(self, steps: int, ahead: int = 0) -> Iterator[tuple[int, SkipBits]]:
        """Yield (first step, bits) for each run of `steps` steps, and up to `ahead` following ones, to its end.

        The bits hold the run's own steps first, then as many of those ahead as the trace still has; they are read-only
        and valid until the next one is asked for.
        """
        ...


@dataclass(frozen=True)
class BitTrace:
    """A trace that is held in memory as it is; bits: [steps, layers, words]."""

    shape: TraceShape
    bits: SkipBits

    def windows(self, steps: int, ahead: int = 0) -> Iterator[tuple[int, SkipBits]]:
        """See SkipTrace."""
        for first in range(0, self.shape.steps, steps):
            yield first, self.bits[first : first + steps + ahead]
