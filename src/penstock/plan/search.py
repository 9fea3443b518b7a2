"""The search: many cuts of the work in closed form, the best of them placed and sketched, and few run virtually."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from penstock.errors import UserError
from penstock.plan import grid
from penstock.plan.case import Case
from penstock.plan.plan import Prediction
from penstock.plan.policy import Shares
from penstock.plan.promises import Place, Promises, is_shared
from penstock.plan.sketch import Outlines, Sketch
from penstock.plan.steady import Estimate, Steady
from penstock.plan.types import Asked, Placement
from penstock.plan.virtual import VirtualRun, continued, rows_shown
from penstock.plan.wish import placed

SKETCHES = 10
_FINALISTS = 2
_NEAR = 0.95  # of the best sketch: who promises less than this is not run
_HOPELESS = 0.9  # of the best sketch: a place that promises less is not sketched, and closed forms promise too much
_WORSE = 0.8  # of what the best cut promises: one beside it that promises less is not sketched
_BEATEN = 0.95  # of the best sketch: what comes to less where KV rests elsewhere leads no further
_ALIKE = 0.99  # of the best sketch is no difference, where KV is shared
_LONG = 60_000  # spans of a virtual run, from which on one is enough
_LONGEST = 100_000  # from which on none is made of a plan that KV in one place comes near to
_MOST_SPANS = 200_000  # of a run of all rows, where a part of them says little
_SHOWN_SPANS = 12_000  # of a virtual run of the first rows, where a sketch says how they go on
_WORTH_SHARING = 0.97  # of what shared KV promises is enough to keep it in one place, of which sketches know all
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


class Search:
    """Finds the best placement of a case that an engine can run.

    outlines: of a search for the same job, whose runs this one need not make again.
    """

    def __init__(self, case: Case, outlines: Outlines | None = None) -> None:
        self.case = case
        self.outlines = outlines or Outlines(case)
        self.steady = Steady(case)
        self.promises = Promises(case, self.steady)
        self._sketch = Sketch(case, self.outlines)
        self._known: dict[tuple[object, ...], Candidate] = {}
        self._placements: dict[Asked, Placement] = {}

    def best(self, sketches: int = SKETCHES) -> list[Candidate]:
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

        With all KV in one place, sketches are as good as virtual runs. With KV shared between tiers they are not, where
        rows fill the compute tier and give way: the best few of those where runs are short, and where they are long
        those in one place that promise about as much. And beside KV elsewhere the best that has it at hand.
        """
        best = found[0]
        if self._at_hand(best) or self.worth(best) <= 0:
            return [best]
        near = [c for c in found if self.worth(c) >= _NEAR * self.worth(best)]
        few = near[:1]
        if is_shared(best.placement.policy.kv):
            in_one = [c for c in near if not is_shared(c.placement.policy.kv)][:1]
            shared = self._least_tight([c for c in near if is_shared(c.placement.policy.kv)])
            few = [*shared[: _FINALISTS if _spans(best) <= _LONG else 1], *in_one]
            if (
                in_one
                and self.worth(in_one[0]) >= _WORTH_SHARING * self.worth(best)
                and self._run_spans(best) > _LONGEST
            ):
                few = in_one
        few = [*few, *[c for c in near if self._at_hand(c)][:1]]
        return list({_key(c.placement): c for c in few}.values())

    def _least_tight(self, found: Sequence[Candidate]) -> Sequence[Candidate]:
        """Of candidates in order those first that promise as much as the best and ask least of the compute tier."""

        def tightness(candidate: Candidate) -> tuple[int, float]:
            policy = candidate.placement.policy
            return policy.sweep_tokens, policy.kv.of(self.case.kv_tier)

        alike = [c for c in found if self.worth(c) >= _ALIKE * self.worth(found[0])]
        return [*sorted(alike, key=tightness), *found[len(alike) :]]

    def _run_spans(self, candidate: Candidate) -> float:
        """Spans of a virtual run that shows how rows come apart whose KV is shared between tiers."""
        if _spans(candidate) <= _MOST_SPANS:
            return _spans(candidate)
        shown = rows_shown(self.case, candidate.placement, self.case.lengths)
        return _spans(candidate) * min(1.0, 1.5 * shown / len(self.case.lengths))

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
        for place in self.promises.places():
            best = max(map(self.worth, found)) / (1.0 if place.asked is not None else _WORTH_SHARING)
            if not place.estimates or not self.promises.less(place.estimates[0], _HOPELESS * best):
                found += self._explored(place, most, best)
        return list({_key(candidate.placement): candidate for candidate in found}.values())

    def _explored(self, place: Place, most: int, to_beat: float) -> list[Candidate]:
        """With KV in one place: the best in closed form, what the rule makes of it, and from the best of these on what
        is better beside it. At most so many sketches, and one more. to_beat: what the best elsewhere promises."""
        found: dict[tuple[object, ...], Candidate] = {}
        kept = 0.0  # of what closed forms promise, in the sketch that keeps most of it

        def tried(asked: Asked) -> Candidate | None:
            placement = self._place(asked)
            if placement is None or _key(placement) in found:
                return None
            candidate = found[_key(placement)] = self._predicted(placement)
            return candidate

        for asked, estimate in self._leading(place):
            best = max([to_beat, *map(self.worth, found.values())])
            if kept > 0 and estimate is not None and self.promises.less(estimate, _BEATEN * best / kept):
                continue
            candidate = tried(asked) if len(found) <= most // 3 + 1 else None
            if candidate is not None and estimate is not None:
                sketched, promised = self.worth(candidate), self.promises.worth(estimate)
                kept = max(kept, sketched / promised) if min(sketched, promised) > 0 else kept
        # what a third slot is worth only a sketch says, and its run is made already
        if found:
            policy = max(found.values(), key=self.worth).placement.policy
            for other in grid.other_slots(self.case, grid.cut_of(policy)):
                tried(grid.wish(self.case, other, policy.kv))
        # the closed form knows nothing of how rows come and go: from its best on, the sketches lead
        better = max(found.values(), key=self.worth, default=None)
        at_hand = place.asked is not None and place.asked.kv is None
        beaten = better is not None and 0 < self.worth(better) < _BEATEN * to_beat
        if beaten and not at_hand and self.case.token_s is None:
            better = None
        while better is not None:
            leader, better = better, None
            for asked in self._beside(leader):
                candidate = tried(asked) if len(found) <= most else None
                if candidate is not None and self.worth(candidate) > self.worth(leader):
                    better = candidate
                    break
        return list(found.values())

    def _leading(self, place: Place) -> Iterator[tuple[Asked, Estimate | None]]:
        """Wishes to begin with, and what closed forms promise of them: their best, the rule's own, and others."""
        leading = [(grid.wish(self.case, one.cut, one.kv), one) for one in self.promises.leading(place)]
        yield from leading[:1]
        if place.asked is not None and (own := self._place(place.asked)) is not None:
            yield place.asked, self.steady.estimate(grid.cut_of(own.policy), own.policy.kv)
        yield from leading[1:]

    def whole(self, candidate: Candidate) -> Candidate:
        """A candidate as the engine's own scheduler runs it.

        Of a long job with KV in one place only the first rows: there sketches go as runs do, and say how it goes on.
        """
        if not candidate.sketched:
            return candidate
        case, placement, lengths = self.case, candidate.placement, self.case.lengths
        run = VirtualRun(case, placement)
        if is_shared(placement.policy.kv):
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
        if case.asked.kv is None and is_shared(kv):
            anew = steady.placed(cut)
            if anew is not None and is_shared(anew.kv):
                yield grid.wish(case, cut, anew.kv)
        for other in grid.beside(case, cut):
            estimate = steady.estimate(other, kv)
            if not (here and estimate and self.promises.less(estimate, _WORSE * self.promises.worth(here))):
                yield grid.wish(case, other, kv)

    def worth(self, candidate: Candidate) -> float:
        """What a candidate is worth: see Case."""
        return self.case.worth(candidate.predicted.steady.seconds, candidate.predicted.total_tok_s)

    def run(self, asked: Asked) -> Candidate:
        """What the simple rule makes of a wish, in outline. UserError where it does not fit."""
        return self._predicted(self._placed(asked))

    def wider(self, placement: Placement, kv: Shares | None) -> list[Candidate]:
        """A cut placed again with KV so shared, and with more rows where closed forms promise as much of these."""
        policy, asked = placement.policy, replace(self.case.asked, kv=kv)
        same = replace(asked, sweep_tokens=policy.sweep_tokens, batch_tokens=policy.batch_tokens, slots=policy.slots)
        if asked.rows is not None or asked.batch_size is not None:
            return [self.run(same)]
        cut = grid.cut_of(policy)
        here = self.steady.estimate(cut, kv)
        wider = [policy.rows]
        for rows in grid.more_rows(self.case, policy.rows)[:2]:
            estimate = self.steady.estimate(replace(cut, rows=rows), kv)
            if not (here and estimate and self.promises.less(estimate, self.promises.worth(here))):
                wider.append(rows)
        return [self.run(replace(same, rows=rows)) for rows in wider]

    def curve(self, kv: Shares) -> list[tuple[int, float]]:
        """Rows in flight, and tok/s with so many, by the closed form with KV so shared."""
        best: dict[int, float] = {}
        for cut in grid.cuts(self.case):
            estimate = self.steady.estimate(cut, kv)
            if estimate is not None and estimate.rows >= cut.rows:
                best[cut.rows] = max(best.get(cut.rows, 0.0), estimate.tok_s)
        return sorted(best.items())

    def _placed(self, asked: Asked) -> Placement:
        if asked not in self._placements:
            self._placements[asked] = placed(self.case, asked)
        return self._placements[asked]

    def _place(self, asked: Asked) -> Placement | None:
        try:
            return self._placed(asked)
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

    def _at_hand(self, candidate: Candidate) -> bool:
        """Whether all KV rests where it is computed."""
        return candidate.placement.policy.kv.of(self.case.kv_tier) >= 1


def _spans(candidate: Candidate) -> float:
    """What a run of the whole job would schedule."""
    return candidate.predicted.sweeps * candidate.predicted.rows_mean


def _key(placement: Placement) -> tuple[object, ...]:
    policy = placement.policy
    cut = (policy.rows, policy.sweep_tokens, policy.batch_tokens, policy.slots, policy.cpu_layers)
    return (*cut, placement.homes, tuple(placement.kv.items()))
