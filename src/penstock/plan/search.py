"""The search: many cuts of the work in closed form, the best of them placed and sketched, and few run virtually."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from penstock.errors import UserError
from penstock.plan.case import Case
from penstock.plan.linear import Optimum
from penstock.plan.plan import Prediction
from penstock.plan.policy import Shares, Tier
from penstock.plan.sizes import Cut
from penstock.plan.sketch import Sketch
from penstock.plan.steady import Estimate, Steady
from penstock.plan.types import Asked, Placement
from penstock.plan.virtual import VirtualRun, continued, rows_shown
from penstock.plan.wish import placed

# One fixed grid whatever the budgets: were it to depend on them, more memory could make a plan worse.
_ROWS = tuple(sorted({1, 2, 3} | {2**n for n in range(2, 13)} | {3 * 2**n for n in range(1, 11)}))
_CALL_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SWEEP_CALLS = (1, 2, 4, 8)
_SLOTS = (2, 3)
_MOST_SWEEP = 32768
_SKETCHES = 9
_FINALISTS = 2
_NEAR = 0.95  # of the best sketch: who promises less than this is not run
_LONG = 60_000  # spans of a virtual run, from which on one is enough
_MOST_SPANS = 200_000  # of a run of all rows, where a part of them says little
_WORTH_MOVING = 0.97  # of what KV elsewhere promises is enough to keep it at hand: less can go wrong, and no disk wears


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement and what it does. optimum: the linear program's answer for it, where it had a choice. sketched:
    predicted in outline only. outline: what the sketch said of one that was run since."""

    placement: Placement
    predicted: Prediction
    optimum: Optimum | None = None
    sketched: bool = True
    outline: Prediction | None = None

    @property
    def bias(self) -> float:
        """tok/s of a virtual run over those of its sketch; 1 where only one of them is known."""
        return self.predicted.total_tok_s / self.outline.total_tok_s if self.outline else 1.0


class Search:
    """Finds the best placement of a case that an engine can run."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.steady = Steady(case)
        self._sketch = Sketch(case)

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

        With KV at hand, sketches are as good as virtual runs. With KV elsewhere they are not: the best few of those,
        and the best beside them that has it at hand.
        """
        best = found[0]
        if not _moved(best.placement.policy.kv) or self.worth(best) <= 0:
            return [best]
        near = [c for c in found if self.worth(c) >= _NEAR * self.worth(best)]
        at_hand = [c for c in near if not _moved(c.placement.policy.kv)]
        few = near[: 1 if _spans(best) > _LONG else _FINALISTS]
        return [*few, *(c for c in at_hand[:1] if c not in few)]

    def _ranked(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Candidates in order, those that were run first: sketches promise a little more or less."""
        ranked = sorted(found, key=lambda c: (not c.sketched, self.worth(c)), reverse=True)
        at_hand = [c for c in ranked if not c.sketched and not _moved(c.placement.policy.kv)]
        if at_hand and self.worth(at_hand[0]) >= _WORTH_MOVING * self.worth(ranked[0]) > 0:
            ranked = [at_hand[0], *(c for c in ranked if c is not at_hand[0])]
        return ranked

    def _sketched(self, most: int) -> list[Candidate]:
        """The rule's own choice, the best in closed form, and from the best of these on what is better beside it."""
        found = [self.run(self.case.asked)]
        seen = {_key(found[0].placement)}

        def tried(asked: Asked, optimum: Optimum | None = None) -> Candidate | None:
            placement = self._place(asked)
            if placement is None or _key(placement) in seen:
                return None
            seen.add(_key(placement))
            found.append(replace(self._predicted(placement), optimum=optimum))
            return found[-1]

        for estimate in self._estimates()[: 4 * most]:
            if len(found) > most // 2:
                break
            tried(_asked(self.case.asked, estimate), estimate.optimum)
        # the closed form knows nothing of how rows come and go: from its best on, the sketches lead
        best = max(found, key=self.worth)
        while len(found) <= most:
            better = None
            for asked in self._neighbours(best.placement):
                candidate = tried(asked) if len(found) <= most else None
                if candidate is not None and self.worth(candidate) > self.worth(best):
                    better = best = candidate
                    break
            if better is None:
                break
        return found

    def whole(self, candidate: Candidate) -> Candidate:
        """A candidate as the engine's own scheduler runs it.

        Of a long job with KV at hand only the first rows: there sketches go as runs do, and say how it goes on.
        """
        if not candidate.sketched:
            return candidate
        case, placement = self.case, candidate.placement
        run, count = VirtualRun(case, placement), rows_shown(case, placement, case.lengths)
        if _moved(placement.policy.kv):
            # how its rows come apart takes long to show
            predicted = run.first(case.lengths) if _spans(candidate) <= _MOST_SPANS else run.predict(case.lengths)
        elif 1.5 * count >= len(case.lengths):
            predicted = run.first(case.lengths)
        else:
            outlined, outline = (self._sketch.part(placement, rows) for rows in (count, len(case.lengths)))
            predicted = continued(run.first(case.lengths[:count]), outlined, outline)
        return replace(candidate, predicted=predicted, sketched=False, outline=candidate.predicted)

    def _neighbours(self, placement: Placement) -> Iterator[Asked]:
        """Wishes that differ from a placement in one thing that is not fixed."""
        asked, policy = self.case.asked, placement.policy
        same = replace(
            asked,
            rows=None if asked.batch_size else policy.rows,
            sweep_tokens=policy.sweep_tokens,
            batch_tokens=policy.batch_tokens,
            slots=policy.slots,
            kv=asked.kv or (policy.kv if _moved(policy.kv) else None),
        )
        if asked.sweep_tokens is None:
            for sweep in (policy.sweep_tokens // 2, policy.sweep_tokens * 2):
                call = policy.batch_tokens if asked.batch_tokens else min(policy.batch_tokens, sweep)
                if max(call, 32) <= sweep <= _MOST_SWEEP:
                    yield replace(same, sweep_tokens=sweep, batch_tokens=call)
        if asked.slots is None:
            yield replace(same, slots=3 if policy.slots == 2 else 2)
        if asked.rows is None and asked.batch_size is None:
            fewer = [rows for rows in _ROWS if rows < policy.rows]
            more = [rows for rows in _ROWS if policy.rows < rows <= self.case.job.prompts]
            for rows in (*fewer[-1:], *more[:1], *fewer[-3:-2]):
                yield replace(same, rows=rows)
        if asked.batch_tokens is None:
            for batch in (policy.batch_tokens // 2, policy.batch_tokens * 2):
                if 32 <= batch <= policy.sweep_tokens and batch <= max(self.case.shape.footprint.call_tokens, 32):
                    yield replace(same, batch_tokens=batch)

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
        more = [rows for rows in _ROWS if policy.rows < rows <= self.case.job.prompts][:2]
        return [self.run(replace(same, rows=rows)) for rows in (policy.rows, *more)]

    def curve(self) -> list[tuple[int, float]]:
        """Rows in flight, and tok/s with so many, by the closed form."""
        best: dict[int, float] = {}
        tokens = self.case.job.prompts * self.case.generated
        for cut in self._cuts():
            estimate = self.steady.estimate(cut)
            if estimate is not None and estimate.rows >= cut.rows:
                best[cut.rows] = max(best.get(cut.rows, 0.0), tokens / estimate.seconds)
        return sorted(best.items())

    def _place(self, asked: Asked) -> Placement | None:
        try:
            return placed(self.case, asked)
        except UserError:
            return None  # the closed form is a little off: this one does not fit after all

    def _predicted(self, placement: Placement) -> Candidate:
        case = self.case
        placement = replace(placement, policy=case.extended(placement.policy))
        if placement.policy.admission == "static":
            return Candidate(placement, VirtualRun(case, placement).predict(case.lengths), sketched=False)
        return Candidate(placement, self._sketch.predict(placement))

    def _estimates(self) -> list[Estimate]:
        """Cuts in closed form, best first, and for the best of each number of rows what the linear program would do."""
        estimates = [e for cut in self._cuts() if (e := self.steady.estimate(cut)) is not None]
        estimates.sort(key=self._rank)
        if self._may_move_kv():
            leaders = {estimate.cut.rows: estimate.cut for estimate in reversed(estimates)}
            estimates += [e for cut in leaders.values() if (e := self.steady.placed(cut)) is not None]
            estimates.sort(key=self._rank)
        return estimates

    def _rank(self, estimate: Estimate) -> float:
        case = self.case
        late = case.token_s is not None and estimate.sweep_s > case.token_s
        if late or (case.latency and case.token_s is None):
            return 1e12 * late + estimate.sweep_s
        return estimate.seconds

    def _may_move_kv(self) -> bool:
        below: Sequence[Tier] = ("cpu", "disk") if self.case.compute == "gpu" else ("disk",)
        return self.case.asked.kv is None and any(self.case.ledger.free(tier) > 0 for tier in below)

    def _cuts(self) -> Iterator[Cut]:
        """The grid, less what is fixed."""
        case, asked = self.case, self.case.asked
        given = asked.rows or (asked.batch_size or 0) * (asked.num_batches or 0)
        rows_grid = (given,) if given else tuple(r for r in (*_ROWS, case.job.prompts) if r <= case.job.prompts)
        most_call = _CALL_TOKENS[-1] if case.compute == "gpu" else case.shape.footprint.call_tokens
        for rows in dict.fromkeys(rows_grid):
            for batch in (asked.batch_tokens,) if asked.batch_tokens else _CALL_TOKENS:
                if asked.batch_tokens is None and batch > most_call:
                    continue
                sweeps = (asked.sweep_tokens,) if asked.sweep_tokens else tuple(batch * n for n in _SWEEP_CALLS)
                for sweep in sweeps:
                    if sweep < rows or sweep > _MOST_SWEEP:
                        continue
                    for slots in (asked.slots,) if asked.slots else _SLOTS:
                        yield Cut(slots, batch, rows, sweep)


def _asked(asked: Asked, estimate: Estimate) -> Asked:
    """A wish for just this cut."""
    cut = estimate.cut
    whole = asked.batch_size is not None
    return replace(
        asked,
        rows=None if whole else cut.rows,
        sweep_tokens=cut.sweep,
        batch_tokens=cut.batch,
        slots=cut.slots,
        kv=asked.kv or (estimate.kv if _moved(estimate.kv) else None),
    )


def _spans(candidate: Candidate) -> float:
    """What a run of the whole job would schedule."""
    return candidate.predicted.sweeps * candidate.predicted.rows_mean


def _moved(kv: Shares) -> bool:
    return max(kv.gpu, kv.cpu, kv.disk) < 1.0 or kv.disk == 1.0


def _key(placement: Placement) -> tuple[object, ...]:
    policy = placement.policy
    cut = (policy.rows, policy.sweep_tokens, policy.batch_tokens, policy.slots)
    return (*cut, placement.homes, tuple(placement.kv.items()))
