"""The search: many cuts of the work in closed form, the best of them placed and sketched, and few run virtually."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from penstock.errors import UserError
from penstock.plan import grid
from penstock.plan.case import Case
from penstock.plan.plan import Prediction
from penstock.plan.policy import Shares
from penstock.plan.sketch import Sketch
from penstock.plan.steady import Estimate, Steady
from penstock.plan.types import Asked, Placement
from penstock.plan.virtual import VirtualRun, continued, rows_shown
from penstock.plan.wish import placed

_SKETCHES = 10
_FINALISTS = 2
_NEAR = 0.95  # of the best sketch: who promises less than this is not run
_HOPELESS = 0.9  # of the best sketch: a place that promises less is not sketched, and closed forms promise too much
_ALIKE = 0.99  # of what closed forms promise, which is no difference
_WORSE = 0.85  # of what the best cut promises: one beside it that promises less is not sketched
_LONG = 60_000  # spans of a virtual run, from which on one is enough
_MOST_SPANS = 200_000  # of a run of all rows, where a part of them says little
_SHOWN_SPANS = 30_000  # of a virtual run of the first rows, where a sketch says how they go on
_WORTH_MOVING = 0.97  # of what KV elsewhere promises is enough to keep it at hand: less can go wrong, and no disk wears


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement and what it does. sketched: predicted in outline only. outline: what the sketch said of one that was
    run since."""

    placement: Placement
    predicted: Prediction
    sketched: bool = True
    outline: Prediction | None = None

    @property
    def bias(self) -> float:
        """tok/s of a virtual run over those of its sketch; 1 where only one of them is known."""
        return self.predicted.total_tok_s / self.outline.total_tok_s if self.outline else 1.0


class _Place(NamedTuple):
    """Where KV rests while cuts are tried. asked: a wish for that alone, None where every cut has shares of its own.
    estimates: cuts in closed form, best first."""

    asked: Asked | None
    estimates: Sequence[Estimate]


class Search:
    """Finds the best placement of a case that an engine can run."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.steady = Steady(case)
        self._sketch = Sketch(case)
        self._known: dict[tuple[object, ...], Candidate] = {}

    def best(self, sketches: int = _SKETCHES) -> list[Candidate]:
        """Placements, best first; among them what the simple rule decides. The best is predicted by a virtual run.

        Raises UserError, with the least budget that works, where nothing fits.
        """
        found = self._sketched(sketches)
        found.sort(key=self.worth, reverse=True)
        finalists = self._finalists(found)
        run: list[Candidate] = []
        for candidate in [*finalists, *(c for c in found if c not in finalists)]:
            if len(run) >= len(finalists) and (self.case.token_s is None or any(self.worth(c) > 0 for c in run)):
                break  # a bound on the time per token is missed by some that sketches promised
            run.append(self.whole(candidate))
        known = {_key(c.placement) for c in run}
        return self._ranked([*run, *(c for c in found if _key(c.placement) not in known)])

    def _finalists(self, found: Sequence[Candidate]) -> Sequence[Candidate]:
        """Of candidates in order those whose virtual runs decide.

        With all KV in one place, sketches are as good as virtual runs. With KV shared between tiers they are not: the
        best few of those. And beside KV elsewhere the best that has it at hand.
        """
        best = found[0]
        if self._at_hand(best) or self.worth(best) <= 0:
            return [best]
        near = [c for c in found if self.worth(c) >= _NEAR * self.worth(best)]
        few = near[: _FINALISTS if _shared(best.placement.policy.kv) and _spans(best) <= _LONG else 1]
        return [*few, *[c for c in near if self._at_hand(c)][:1]]

    def _ranked(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Candidates in order, those that were run first: sketches promise a little more or less."""
        ranked = sorted(found, key=lambda c: (not c.sketched, self.worth(c)), reverse=True)
        at_hand = [c for c in ranked if not c.sketched and self._at_hand(c)]
        if at_hand and self.worth(at_hand[0]) >= _WORTH_MOVING * self.worth(ranked[0]) > 0:
            ranked = [at_hand[0], *(c for c in ranked if c is not at_hand[0])]
        return ranked

    def _sketched(self, most: int) -> list[Candidate]:
        """The rule's own choice, and what is found with KV in every place that promises as much as the best so far.

        Each place is searched as if KV had to rest there: what is free to be chosen is never worse than what is fixed.
        """
        found = [self.run(self.case.asked)]
        for place in self._places():
            best = max(map(self.worth, found))
            if not place.estimates or not self._promises_less(place.estimates[0], _HOPELESS * best):
                found += self._explored(place, most)
        return list({_key(candidate.placement): candidate for candidate in found}.values())

    def _places(self) -> Sequence["_Place"]:
        """Where KV may rest, what promises most first."""
        case, steady, cuts = self.case, self.steady, list(grid.cuts(self.case))
        places = []
        for kv in steady.places():
            estimates = [e for cut in cuts if (e := steady.estimate(cut, kv)) is not None]
            places.append(_Place(grid.with_kv(case, kv), sorted(estimates, key=self._promise, reverse=True)))
        if len(places) > 1:
            leaders = self._leaders([estimate for place in places for estimate in place.estimates])
            shared = [e for leader in leaders if (e := steady.placed(leader.cut)) is not None and _shared(e.kv)]
            places.append(_Place(None, sorted(shared, key=self._promise, reverse=True)))
        return sorted(places, key=lambda one: max(map(self._promise, one.estimates), default=-math.inf), reverse=True)

    def _leaders(self, estimates: Sequence[Estimate]) -> Sequence[Estimate]:
        """The best cut of every number of rows, best first."""
        best = {estimate.cut.rows: estimate for estimate in sorted(estimates, key=self._promise)}
        return sorted(best.values(), key=self._promise, reverse=True)

    def _smallest_alike(self, leader: Estimate, estimates: Sequence[Estimate]) -> Estimate:
        """The smallest sweep of as many rows as the leader has that promises as much, about."""
        least = _ALIKE * self._promise(leader)
        alike = [e for e in estimates if e.cut.rows == leader.cut.rows and not self._promises_less(e, least)]
        return min(alike, key=lambda estimate: estimate.cut.sweep)

    def _explored(self, place: "_Place", most: int) -> list[Candidate]:
        """With KV in one place: what the rule makes of it, the best in closed form, and from the best of these on what
        is better beside it. At most so many sketches, and one more."""
        found: dict[tuple[object, ...], Candidate] = {}

        def tried(asked: Asked) -> Candidate | None:
            placement = self._place(asked)
            if placement is None or _key(placement) in found:
                return None
            candidate = found[_key(placement)] = self._predicted(placement)
            return candidate

        if place.asked is not None:
            tried(place.asked)
        leaders = self._leaders(place.estimates)
        # between the largest and the smallest sweep that promise the same lies a valley, which climbing does not cross
        smallest = [self._smallest_alike(leader, place.estimates) for leader in leaders[:1]]
        for estimate in [*smallest, *leaders]:
            if len(found) > most // 3 + 1:
                break
            tried(grid.wish(self.case, estimate.cut, estimate.kv))
        # the closed form knows nothing of how rows come and go: from its best on, the sketches lead
        best = better = max(found.values(), key=self.worth, default=None)
        while best is not None and better is not None:
            better = None
            for asked in self._beside(best):
                candidate = tried(asked) if len(found) <= most else None
                if candidate is not None and self.worth(candidate) > self.worth(best):
                    best = better = candidate
                    break
        return list(found.values())

    def whole(self, candidate: Candidate) -> Candidate:
        """A candidate as the engine's own scheduler runs it.

        Of a long job with KV at hand only the first rows: there sketches go as runs do, and say how it goes on.
        """
        if not candidate.sketched:
            return candidate
        case, placement, lengths = self.case, candidate.placement, self.case.lengths
        run = VirtualRun(case, placement)
        if _shared(placement.policy.kv):
            # how its rows come apart takes long to show
            predicted = run.first(lengths) if _spans(candidate) <= _MOST_SPANS else run.predict(lengths)
            return replace(candidate, predicted=predicted, sketched=False, outline=candidate.predicted)
        affordable = int(len(lengths) * _SHOWN_SPANS / max(1.0, _spans(candidate)))
        count = max(1, min(affordable, rows_shown(case, placement, lengths)))
        if 1.5 * count >= len(lengths):
            predicted = run.first(lengths)
        else:
            outlined, outline = (self._sketch.part(placement, rows) for rows in (count, len(lengths)))
            predicted = continued(run.first(lengths[:count]), outlined, outline)
        return replace(candidate, predicted=predicted, sketched=False, outline=candidate.predicted)

    def _beside(self, candidate: Candidate) -> Iterator[Asked]:
        """Wishes beside a candidate, KV shared anew or another cut, that promise as much in closed form, about."""
        case, steady, kv = self.case, self.steady, candidate.placement.policy.kv
        cut = grid.cut_of(candidate.placement.policy)
        here = steady.estimate(cut, kv)
        if case.asked.kv is None and _shared(kv):
            anew = steady.placed(cut)
            if anew is not None and _shared(anew.kv):
                yield grid.wish(case, cut, anew.kv)
        for other in grid.beside(case, cut):
            estimate = steady.estimate(other, kv)
            if not (here and estimate and self._promises_less(estimate, _WORSE * self._promise(here))):
                yield grid.wish(case, other, kv)

    def worth(self, candidate: Candidate) -> float:
        """What is wanted of a plan, more being better: a bound on time per token comes before speed."""
        predicted = candidate.predicted
        sweep_s = predicted.steady.seconds
        if self.case.latency and self.case.token_s is None:
            return -sweep_s
        if self.case.token_s is not None and sweep_s > self.case.token_s:
            return -sweep_s
        return predicted.total_tok_s

    def run(self, asked: Asked) -> Candidate:
        """What the simple rule makes of a wish, in outline. UserError where it does not fit."""
        return self._predicted(placed(self.case, asked))

    def wider(self, placement: Placement) -> list[Candidate]:
        """A cut placed again, and the same with more rows."""
        policy, asked = placement.policy, self.case.asked
        same = replace(asked, sweep_tokens=policy.sweep_tokens, batch_tokens=policy.batch_tokens, slots=policy.slots)
        if asked.rows is not None or asked.batch_size is not None:
            return [self.run(same)]
        more = grid.more_rows(self.case, policy.rows)[:2]
        return [self.run(replace(same, rows=rows)) for rows in (policy.rows, *more)]

    def curve(self, kv: Shares) -> list[tuple[int, float]]:
        """Rows in flight, and tok/s with so many, by the closed form with KV so shared."""
        best: dict[int, float] = {}
        for cut in grid.cuts(self.case):
            estimate = self.steady.estimate(cut, kv)
            if estimate is not None and estimate.rows >= cut.rows:
                best[cut.rows] = max(best.get(cut.rows, 0.0), estimate.tok_s)
        return sorted(best.items())

    def _place(self, asked: Asked) -> Placement | None:
        try:
            return placed(self.case, asked)
        except UserError:
            return None  # the closed form is a little off: this one does not fit after all

    def _predicted(self, placement: Placement) -> Candidate:
        case = self.case
        placement = replace(placement, policy=case.extended(placement.policy))
        key = _key(placement)
        if key not in self._known:
            if placement.policy.admission == "static":
                run = VirtualRun(case, placement).predict(case.lengths)
                self._known[key] = Candidate(placement, run, sketched=False)
            else:
                self._known[key] = Candidate(placement, self._sketch.predict(placement))
        return self._known[key]

    def _promise(self, estimate: Estimate) -> float:
        """What the closed form says of a candidate's worth."""
        case = self.case
        late = case.token_s is not None and estimate.sweep_s > case.token_s
        return -estimate.sweep_s if late or (case.latency and case.token_s is None) else estimate.tok_s

    def _promises_less(self, estimate: Estimate, than: float) -> bool:
        """Whether the closed form rules a cut out; never where it is not speed that is wanted first."""
        return 0 < self._promise(estimate) < than

    def _at_hand(self, candidate: Candidate) -> bool:
        """Whether all KV rests where it is computed."""
        return candidate.placement.policy.kv.of(self.case.compute) >= 1


def _spans(candidate: Candidate) -> float:
    """What a run of the whole job would schedule."""
    return candidate.predicted.sweeps * candidate.predicted.rows_mean


def _shared(kv: Shares) -> bool:
    """Whether KV rests on more than one tier."""
    return max(kv.gpu, kv.cpu, kv.disk) < 1.0


def _key(placement: Placement) -> tuple[object, ...]:
    policy = placement.policy
    cut = (policy.rows, policy.sweep_tokens, policy.batch_tokens, policy.slots)
    return (*cut, placement.homes, tuple(placement.kv.items()))
