"""Belady's rule on sets, which decides on the new item with the others."""

from collections.abc import Iterator

from tests.sim.oracle_case import Item
from tests.sim.oracle_migrations import Move
from tests.sim.oracle_state import State


class Belady:
    def __init__(self, state: State) -> None:
        self.state, self.case = state, state.case
        self.takes_new = False

    def moves(self, n: int, layer: int) -> Iterator[Move]:
        def when(item: Item) -> int:
            return self._next_read(item, n, layer)

        state, new, never = self.state, (n, layer), when((self.case.last, 0))
        self.takes_new = False
        wanted = {item for item in state.read_e if when(item) < never} | {new}
        for item in sorted(wanted, key=lambda item: (when(item), -item[0])):
            outs: list[Item] = []
            if state.free() <= 0:
                last = min(state.hbm, key=lambda item: (-when(item), item), default=None)
                if last is None or when(last) <= when(item):
                    return
                outs = [last]
            if item == new:
                yield outs, []
                self.takes_new, state.kept = True, 1
            else:
                yield outs, [item]

    def in_hbm(self, n: int, layer: int) -> bool:
        self.state.kept = 0
        return self.takes_new

    def _next_read(self, item: Item, n: int, layer: int) -> int:
        """The place of the first step after (n, layer) that reads an item; far beyond the last where none does."""
        t, own = item
        first = max(n if own > layer else n + 1, t + 1)
        steps = (m for m in range(first, self.case.last + 1) if t in self.case.reads(m, own))
        return next((m * self.case.layers + own for m in steps), (self.case.last + 1) * self.case.layers)
