"""What moves: the rules of docs/policies.md in plain numpy."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.sim.policy import Items, Moves
from penstock.sim.prices import best_items
from penstock.sim.view import Mask, View

CLOSE = 200  # alpha leaves alone what is predicted within 1/200 of the target


def above_threshold(view: View) -> bool:
    """Whether HBM is more than 99 % full."""
    return 100 * view.occupancy_bytes > 99 * view.scenario.memories.hbm_capacity_bytes


def of_layer(view: View, tokens: NDArray[np.int64]) -> Items:
    """The items of tokens at the view's layer."""
    return np.column_stack((tokens, np.full_like(tokens, view.layer)))


def of_all_layers(tokens: NDArray[np.int64], among: Mask) -> Items:
    """The items of tokens at every layer that are `among` [layers, tokens], lower layers first."""
    chosen = among[:, tokens].T
    place, layers = np.nonzero(chosen)
    return np.column_stack((tokens[place], layers))


def oldest(mask: Mask) -> NDArray[np.int64]:
    """Tokens in a mask, oldest first."""
    return np.flatnonzero(mask)


def newest(mask: Mask) -> NDArray[np.int64]:
    """Tokens in a mask, newest first."""
    return np.flatnonzero(mask)[::-1]


def skips(view: View, steps: range) -> NDArray[np.int64]:
    """In how many of these steps each token is skipped at the view's layer."""
    count = np.zeros(view.step + 1, np.int64)
    for step in steps:
        count += view.skipped(step)
    return count


@dataclass(frozen=True)
class NoMigration:
    """Nothing moves."""

    def moves(self, view: View) -> Moves:
        """None."""
        return Moves()


@dataclass(frozen=True)
class Lru(NoMigration):
    """Nothing moves but what was just read, which stays: passive installs of everything."""


@dataclass(frozen=True)
class Belady(NoMigration):
    """What is read soonest stays: a reference that belady.py replays from the whole trace, new items included."""

    @property
    def ahead(self) -> int:
        """It looks further, but not through a window."""
        return 1


@dataclass(frozen=True)
class Prior:
    """Above the threshold the oldest tokens in HBM go out whole."""

    count: int = 16

    def moves(self, view: View) -> Moves:
        """At the first layer of a step."""
        if view.layer or not above_threshold(view):
            return Moves()
        return Moves(outs=of_all_layers(np.flatnonzero(view.hbm.any(axis=0))[: self.count], view.hbm))


@dataclass(frozen=True)
class SkippedTokens:
    """Above the threshold what this step skips goes out."""

    layers: Literal["own", "all"] = "own"

    def moves(self, view: View) -> Moves:
        """The items of this layer, or of all layers."""
        if not above_threshold(view):
            return Moves()
        skipped = view.skipped(view.step)
        if self.layers == "all":
            return Moves(outs=of_all_layers(oldest(skipped), view.hbm))
        return Moves(outs=of_layer(view, oldest(skipped & view.hbm[view.layer])))


@dataclass(frozen=True)
class PastWindow:
    """What any step of the window back has skipped goes out, or what all have."""

    window: int = 16
    rule: Literal["any", "all"] = "any"

    @property
    def back(self) -> int:
        """Steps it looks back, with the one that has just left the window: the kernels count by difference."""
        return self.window

    def moves(self, view: View) -> Moves:
        """Items of this layer."""
        steps = view.back(self.window)
        goes = skips(view, steps) >= (1 if self.rule == "any" else len(steps))
        return Moves(outs=of_layer(view, oldest(goes & view.hbm[view.layer])))


@dataclass(frozen=True)
class LookAhead:
    """What the whole window ahead skips goes out; what some of it reads comes in, by how often, then newest first.

    Whole tokens move, or items of this layer. With `room`, outs go only where an in needs their place.
    """

    window: int
    whole_tokens: bool
    room: bool = False

    @property
    def ahead(self) -> int:
        """Steps it looks ahead."""
        return self.window

    def moves(self, view: View) -> Moves:
        """By how many steps of the window skip each token at this layer."""
        steps = view.ahead(self.window)
        if not len(steps):
            return Moves()
        count = skips(view, steps)
        leave, come = oldest(count == len(steps)), newest(count < len(steps))
        come = come[np.argsort(count[come], kind="stable")]
        outside = view.exist & ~view.hbm
        if self.whole_tokens:
            outs, ins = of_all_layers(leave, view.hbm), of_all_layers(come, outside)
        else:
            outs = of_layer(view, leave[view.hbm[view.layer, leave]])
            ins = of_layer(view, come[outside[view.layer, come]])
        if self.room:
            return Moves(ins=ins, room=outs, room_by_token=self.whole_tokens)
        return Moves(outs=outs, ins=ins)


@dataclass(frozen=True)
class Alpha:
    """Bring in, or move out, what is missing to the best share of the reads ahead."""

    target: Fraction | None = None
    window: int = 1

    @property
    def ahead(self) -> int:
        """Steps it looks ahead."""
        return self.window

    def moves(self, view: View) -> Moves:
        """Items of this layer."""
        steps = view.ahead(self.window)
        if not len(steps):
            return Moves()
        here, exist = view.hbm[view.layer], view.exist[view.layer]
        count = skips(view, steps)
        wanted, held = self._wanted_and_held(view, steps, int(((len(steps) - count) * here).sum()))
        read = exist & (count < len(steps))
        if held < wanted:
            come = newest(read & ~here)
            come = come[np.lexsort((~view.read_from_ext[come], count[come]))][: wanted - held]
            return Moves(ins=of_layer(view, come), room=of_layer(view, oldest(here & ~read)))
        if held > wanted and view.scenario.mode == "exclusive":
            leave = oldest(read & here)
            leave = leave[np.argsort(-count[leave], kind="stable")][: held - wanted]
            return Moves(outs=of_layer(view, leave))
        return Moves()

    def _wanted_and_held(self, view: View, steps: range, reads_from_hbm: int) -> tuple[int, int]:
        """h* and h; both 0 where the prediction is close enough."""
        scenario, target = view.scenario, self.target if self.target is not None else view.best_share
        item, weights = scenario.kv_bytes, int(view.start.attn_bytes[view.layer])
        reads = view.read_counts(steps).tolist()
        step_bytes = [scenario.attn_bytes + item * count for count in reads]
        from_hbm, all_bytes = len(steps) * weights + item * reads_from_hbm, sum(step_bytes)
        p, q = target.numerator, target.denominator
        if CLOSE * abs(q * from_hbm - p * all_bytes) <= q * all_bytes:
            return 0, 0
        wanted = sum(best_items(p, q, d, weights, item, count) for d, count in zip(step_bytes, reads, strict=True))
        return mean(wanted, len(steps)), mean(reads_from_hbm, len(steps))


def mean(total: int, count: int) -> int:
    """The mean, rounded."""
    return (2 * total + count) // (2 * count)
