"""Moves of one step in the numpy form: what they cost, and whether the step has time for them."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock.sim.policy import Items, Moves, no_items
from penstock.sim.prices import (
    MOVED_EXT_READ,
    MOVED_EXT_WRITTEN,
    MOVED_HBM_READ,
    MOVED_HBM_WRITTEN,
    Prices,
    step_bytes,
)
from penstock.sim.view import Mask


@dataclass
class Mover:
    """Changes `hbm` [layers, tokens] and counts the bytes of it in `counts` [8 kinds].

    `limit_s` is the time that the step may take with its moves (None: no limit), `kept` a place that they leave free.
    `from_hbm` and `from_ext` are what this step has read of its layer: those bytes are in flight already.
    """

    hbm: Mask
    slots: int
    item: int
    exclusive: bool
    prices: Prices
    layer: int
    from_hbm: Mask
    from_ext: Mask
    counts: NDArray[np.int64]
    limit_s: float | None = None
    kept: int = 0
    moved_in: list[Items] = field(default_factory=list)

    @property
    def free(self) -> int:
        """Places that a move may take."""
        return self.slots - self.kept - int(self.hbm.sum())

    def carry_out(self, moves: Moves) -> None:
        """Make a policy's moves, in its order, as far as places and time go."""
        if self.limit_s is None:
            self._all(moves)
        else:
            self._one_by_one(moves)

    def move(self, outs: Items, ins: Items) -> bool:
        """Move items out and others in, together or not at all: whether the step had time for them."""
        cost = self._cost(outs, ins)
        if self.limit_s is not None and seconds(self.prices, self.counts + cost) > self.limit_s:
            return False
        self.counts += cost
        self.hbm[outs[:, 1], outs[:, 0]] = False
        self.hbm[ins[:, 1], ins[:, 0]] = True
        self.moved_in.append(ins)
        return True

    def _all(self, moves: Moves) -> None:
        self.move(moves.outs, no_items())
        short, ends = len(moves.ins) - self.free, _group_ends(moves)
        if short > 0 and len(ends):
            groups = min(int(np.searchsorted(ends, short)), len(ends) - 1) + 1
            self.move(moves.room[: ends[groups - 1]], no_items())
        self.move(no_items(), moves.ins[: self.free])

    def _one_by_one(self, moves: Moves) -> None:
        for out in moves.outs:
            self.move(out[None], no_items())
        groups = np.split(moves.room, _group_ends(moves)[:-1]) if len(moves.room) else []
        groups.reverse()
        for item in moves.ins:
            if self.free > 0:
                self.move(no_items(), item[None])
            elif not groups:
                break
            elif self.move(groups[-1], item[None]):
                groups.pop()

    def _cost(self, outs: Items, ins: Items) -> NDArray[np.int64]:
        cost = np.zeros_like(self.counts)
        cost[MOVED_HBM_WRITTEN] = len(ins)
        cost[MOVED_EXT_READ] = len(ins) - self._in_flight(ins, self.from_ext)
        if self.exclusive:
            cost[MOVED_HBM_READ] = len(outs) - self._in_flight(outs, self.from_hbm)
            cost[MOVED_EXT_WRITTEN] = len(outs)
        return cost * self.item

    def _in_flight(self, items: Items, read: Mask) -> int:
        return int(read[items[items[:, 1] == self.layer, 0]].sum())


def seconds(prices: Prices, counts: NDArray[np.int64]) -> float:
    """T of a step with these bytes."""
    return prices.step_s(*step_bytes(counts))


def _group_ends(moves: Moves) -> NDArray[np.int64]:
    """Where each group of `room` that leaves together ends."""
    count = len(moves.room)
    if not moves.room_by_token or not count:
        return np.arange(1, count + 1)
    return np.append(np.flatnonzero(np.diff(moves.room[:, 0])) + 1, count)
