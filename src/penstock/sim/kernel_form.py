"""A policy pair replayed by compiled kernels: the same integers as the numpy form, some hundred times as fast."""

import numpy as np
from numpy.typing import NDArray

from penstock.sim.initial import InitialState
from penstock.sim.kernel_state import given, record, state
from penstock.sim.kernel_step import advance
from penstock.sim.pair import Pair
from penstock.sim.prices import BYTE_KINDS
from penstock.sim.scenario import Scenario
from penstock.sim.windows import Window


class KernelForm:
    """The state of one pair between windows."""

    def __init__(self, scenario: Scenario, start: InitialState, pair: Pair) -> None:
        numbers = given(scenario, start, pair)
        self._given, self._state = record(numbers), state(scenario, start, numbers)
        self._layers = scenario.layers

    def advance(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Replay a window: bytes of every attention step [steps, layers, 8], items in HBM after it [steps, layers]."""
        shape = window.steps, self._layers
        counts, items = np.zeros((*shape, BYTE_KINDS), np.int64), np.empty(shape, np.int64)
        # One type for what a trace lends and for copies of it: the kernel is compiled once.
        bits = np.ascontiguousarray(window.bits, np.uint64).view()
        bits.setflags(write=False)
        advance(self._given, self._state, bits, window.lead, window.first, window.skip_counts, counts, items)
        return counts, items
