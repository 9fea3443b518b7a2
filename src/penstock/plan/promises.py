"""What closed forms promise of cuts: which lead, in every place where KV may rest."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from penstock.plan import grid
from penstock.plan.case import Case
from penstock.plan.policy import Shares
from penstock.plan.sizes import Cut
from penstock.plan.steady import Estimate, Steady
from penstock.plan.types import Asked

_ALIKE = 0.99  # of what closed forms promise, which is no difference
_SAME = 0.999  # of the same: cuts that differ in rows alone, some of which are never in flight
_HALF_AS_GOOD = 0.5  # of the best cut with KV in one place: KV of cuts that promise less is not shared


class Place(NamedTuple):
    """Where KV rests while cuts are tried. asked: a wish for that alone, None where every cut has shares of its own.
    estimates: cuts in closed form, best first."""

    asked: Asked | None
    estimates: Sequence[Estimate]


class Promises:
    """Cuts of one case in closed form."""

    def __init__(self, case: Case, steady: Steady) -> None:
        self.case, self.steady = case, steady

    def worth(self, estimate: Estimate) -> float:
        """What the closed form says of a candidate's worth."""
        return self.case.worth(estimate.sweep_s, estimate.tok_s)

    def less(self, estimate: Estimate, than: float) -> bool:
        """Whether the closed form rules a cut out; never where it is not speed that is wanted first."""
        return 0 < self.worth(estimate) < than

    def places(self) -> Sequence[Place]:
        """Where KV may rest, what promises most first."""
        case, steady, cuts = self.case, self.steady, list(grid.cuts(self.case))
        places = []
        for kv in steady.places():
            places.append(Place(grid.with_kv(case, kv), self._ranked(list(self._fitting(cuts, kv)))))
        if len(places) > 1:
            leaders = self._leaders([estimate for place in places for estimate in place.estimates])
            near = [one.cut for one in leaders if not self.less(one, _HALF_AS_GOOD * self.worth(leaders[0]))]
            shared = [e for cut in near if (e := steady.placed(cut)) is not None and is_shared(e.kv)]
            places.append(Place(None, self._ranked(shared)))
        return sorted(places, key=lambda one: max(map(self.worth, one.estimates), default=-math.inf), reverse=True)

    def _fitting(self, cuts: Sequence[Cut], kv: Shares) -> Iterator[Estimate]:
        """Cuts that fit, less those with rows beyond the fewest that memory does not hold: they take room for nothing.

        cuts: fewer rows first.
        """
        full: set[tuple[int, int]] = set()
        for cut in cuts:
            estimate = self.steady.estimate(cut, kv) if (cut.batch, cut.sweep) not in full else None
            if estimate is None or estimate.rows < cut.rows:
                full.add((cut.batch, cut.sweep))
            if estimate is not None:
                yield estimate

    def leading(self, place: Place) -> Sequence[Estimate]:
        """The smallest sweep that promises as much as the best, then the best cut of every number of rows.

        Between the largest and the smallest sweep that promise the same lies a valley, which climbing does not cross.
        """
        leaders = self._leaders(place.estimates)
        smallest = [self._smallest_alike(leader, place.estimates) for leader in leaders[:1]]
        return [*smallest, *(one for i, one in enumerate(leaders) if not self._no_other(one, leaders[:i]))]

    def _no_other(self, estimate: Estimate, better: Sequence[Estimate]) -> bool:
        """Whether a cut promises what a better one does that differs in rows alone."""
        return any(
            0 < _SAME * self.worth(one) <= self.worth(estimate)
            and replace(one.cut, rows=estimate.cut.rows) == estimate.cut
            for one in better
        )

    def _ranked(self, estimates: Sequence[Estimate]) -> Sequence[Estimate]:
        return sorted(estimates, key=self.worth, reverse=True)

    def _leaders(self, estimates: Sequence[Estimate]) -> Sequence[Estimate]:
        """The best cut of every number of rows, best first."""
        best = {estimate.cut.rows: estimate for estimate in sorted(estimates, key=self.worth)}
        return self._ranked(list(best.values()))

    def _smallest_alike(self, leader: Estimate, estimates: Sequence[Estimate]) -> Estimate:
        """The smallest sweep of as many rows as the leader has that promises as much, about."""
        least = _ALIKE * self.worth(leader)
        alike = [e for e in estimates if e.cut.rows == leader.cut.rows and not self.less(e, least)]
        return min(alike, key=lambda estimate: estimate.cut.sweep)


def is_shared(kv: Shares) -> bool:
    """Whether KV rests on more than one tier."""
    return max(kv.gpu, kv.cpu, kv.disk) < 1.0
