"""Passive installs of the numpy form: what was just read from external memory stays, and what was used last leaves."""

import numpy as np
from numpy.typing import NDArray

from penstock.sim.mover import Mover
from penstock.sim.policy import Items, no_items


def install(mover: Mover, limit: int | None, last_use: NDArray[np.int64]) -> None:
    """Install what this step read from external memory and is still outside HBM, newest first, at most `limit` items.

    last_use: [layers, tokens], the time of each item's last read or write. Victims are the items in HBM used least
    recently, then the oldest, then of the lowest layer, of those that this step neither read nor moved.
    """
    tokens = np.flatnonzero(mover.from_ext & ~mover.hbm[mover.layer])[::-1]
    items = np.column_stack((tokens, np.full_like(tokens, mover.layer)))
    if mover.limit_s is None:
        items = items[:limit]
        free = mover.free
        victims = _victims(mover, last_use, len(items) - free)
        mover.move(victims, items[: free + len(victims)])
        return
    victims = _victims(mover, last_use, len(items))
    left, made = 0, 0
    for item in items:
        if made == limit:
            break
        if mover.free > 0:
            made += mover.move(no_items(), item[None])
        elif left == len(victims):
            break
        elif mover.move(victims[left : left + 1], item[None]):
            left, made = left + 1, made + 1


def _victims(mover: Mover, last_use: NDArray[np.int64], count: int) -> Items:
    """The first `count` items to leave, in their order, or all that may."""
    if count <= 0:
        return no_items()
    eligible = mover.hbm.copy()
    eligible[mover.layer] &= ~mover.from_hbm & ~mover.from_ext
    for moved in mover.moved_in:
        eligible[moved[:, 1], moved[:, 0]] = False
    tokens, layers = np.nonzero(eligible.T)
    order = np.argsort(last_use[layers, tokens], kind="stable")[:count]
    return np.column_stack((tokens[order], layers[order]))
