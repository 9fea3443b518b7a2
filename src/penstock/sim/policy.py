"""What a policy is: a small class with one method."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from penstock.sim.view import View

# [count, 2]: token and layer of each item, in the order in which they move.
Items = NDArray[np.int64]


def no_items() -> Items:
    """An empty list of items."""
    return np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class Moves:
    """What should move in a step, each list in its order.

    `outs` leave HBM, then `ins` come in until no place is free. Before an in that finds none, the next of `room` leaves
    (of all items with its token, which stand together, if `room_by_token`); with none left, ins stop.
    """

    outs: Items = field(default_factory=no_items)
    ins: Items = field(default_factory=no_items)
    room: Items = field(default_factory=no_items)
    room_by_token: bool = False


@runtime_checkable
class PlacementPolicy(Protocol):
    """Says where the new item of a step goes.

    A class may set `ahead` and `back`: of how many following and past steps it asks the view for (0 without). One with
    `ahead` is clairvoyant on a recorded trace.
    """

    def in_hbm(self, view: View) -> bool:
        """Whether the new item (view.step, view.layer) goes to HBM; without a free place it goes external anyway."""
        ...


@runtime_checkable
class MigrationPolicy(Protocol):
    """Says what moves in a step; `ahead` and `back` as for a placement."""

    def moves(self, view: View) -> Moves:
        """What moves at (view.step, view.layer), seen after the reads."""
        ...


def looks_ahead(policy: object) -> int:
    """How many following steps a policy asks for."""
    return int(getattr(policy, "ahead", 0))


def looks_back(policy: object) -> int:
    """How many past steps a policy asks for, the present one not counted."""
    return int(getattr(policy, "back", 0))
