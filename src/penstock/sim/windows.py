"""A trace in runs of steps, with what policies look back and ahead at."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from penstock.trace import bits
from penstock.trace.skip_trace import SkipBits, SkipTrace

Made = TypeVar("Made")

# A run stays near the processor while several policy pairs go over it.
WINDOW_BYTES = 8 << 20


@dataclass(frozen=True)
class Window:
    """Some steps of a trace, counted from its first: `first` to `first + steps - 1`.

    `bits` also holds `lead` steps before and, to the trace's end, those ahead. `skip_counts` is |S| of every step of
    the trace [steps, layers], filled as far as `bits` reaches.
    """

    first: int
    steps: int
    lead: int
    bits: SkipBits
    skip_counts: NDArray[np.int64]
    _made: dict[Hashable, object] = field(default_factory=dict, compare=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What is made of the window, or was made before under the same key: replays of other pairs share it."""
        if key not in self._made:
            self._made[key] = make()
        return cast(Made, self._made[key])


def open_windows(trace: SkipTrace, back: int, ahead: int) -> Iterator[Window]:
    """Yield the trace's steps in order, run by run; a window's bits are valid until the next one is asked for."""
    shape = trace.shape
    steps = shape.steps_in(WINDOW_BYTES)
    counts = np.zeros((shape.steps, shape.layers), np.int64)
    kept = np.empty((0, shape.layers, shape.words), np.uint64)
    counted = 0
    for first, read in trace.windows(steps, ahead):
        own = min(steps, shape.steps - first)
        counts[counted : first + len(read)] = bits.counts(read[counted - first :])
        counted = first + len(read)
        held = np.concatenate((kept, read)) if back else read
        yield Window(first, own, len(kept), held, counts)
        if back:
            kept = held[: len(kept) + own][-back:].copy()
