"""A policy pair replayed by compiled kernels: the same integers as the numpy form, some hundred times as fast."""

from copy import deepcopy

import numpy as np
from numpy.typing import NDArray

from penstock.sim.initial import InitialState, initial_state
from penstock.sim.kernel_placements import wanted_in_hbm
from penstock.sim.kernel_state import given, record, state
from penstock.sim.kernel_step import advance
from penstock.sim.kernel_windows import look_of, read_only, seen
from penstock.sim.memories import Memories
from penstock.sim.migrations import PastWindow
from penstock.sim.pair import Pair
from penstock.sim.placements import PreferHbm
from penstock.sim.prices import BYTE_KINDS
from penstock.sim.scenario import Scenario
from penstock.sim.windows import Window


class KernelForm:
    """The state of one pair between windows.

    undecided: whether no placement has had a say yet, as no place was ever free for a new item; pairs that differ in
    their placements alone are one run so far.
    """

    def __init__(self, scenario: Scenario, start: InitialState, pair: Pair) -> None:
        numbers = given(scenario, start, pair)
        self._scenario, self._pair, self._look = scenario, pair, look_of(numbers)
        self._given, self._state = record(numbers), state(scenario, start, numbers)

    @property
    def undecided(self) -> bool:
        """See above."""
        return not self._given["placed"][0]

    def copy_state(self, other: "KernelForm") -> None:
        """Go on from where the form of a pair that differs in its placement alone is."""
        by_items = self._given["placed_by_items"][0]
        self._given[:] = other._given
        self._given["placed_by_items"] = by_items
        self._state = deepcopy(other._state)

    def advance(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Replay a window: bytes of every attention step [steps, layers, 8], items in HBM after it [steps, layers]."""
        shape = window.steps, self._scenario.layers
        counts, items = np.zeros((*shape, BYTE_KINDS), np.int64), np.empty(shape, np.int64)
        scenario, placement = self._scenario, self._pair.placement
        # as an array of the same kind every time: the kernels are compiled once
        wanted = window.once(repr(placement), lambda: np.array(wanted_in_hbm(placement, scenario, window), order="C"))
        named, skips = seen(window, self._look, scenario.prefill_tokens)
        rows = read_only(window.bits), window.lead, window.first, named, skips, window.skip_counts
        advance(self._given, self._state, *rows, wanted, counts, items)
        return counts, items


def compile_kernels() -> None:
    """Compile the kernels, or take them from the disk, by the smallest run there is."""
    scenario = Scenario("smallest", Memories(1, 1, 1, 1, 1), 1, 0, 0, 1, 0, 1)
    window = Window(0, 1, 0, np.zeros((1, 1, 1), np.uint64), np.zeros((1, 1), np.int64))
    KernelForm(scenario, initial_state(scenario), Pair(PreferHbm(), PastWindow(window=2), "", "")).advance(window)
