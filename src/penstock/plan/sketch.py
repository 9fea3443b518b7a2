"""A job in outline: a virtual run in which rows are counted, not kept. For a search, which tries many cuts of the work.

Rows that decode all go on by one token a sweep. So it is enough to know how many there are, how many keys they have in
all, in which sweep each ends, and how many of them a sweep lets begin a new block; a sweep then costs what the rows do
that come and go in it. Rows enter, give way and end as with the scheduler. Left out is where KV rests, and that rows
wait for those that compute what they share.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from penstock.plan.case import Case
from penstock.plan.cost import Priced, SweepCost
from penstock.plan.load import Load, Spans, rounded
from penstock.plan.plan import Prediction, SteadySweep
from penstock.plan.policy import TIERS
from penstock.plan.types import Placement
from penstock.plan.virtual import AHEAD, hidden_tokens, in_part
from penstock.schedule.demand import Demand
from penstock.schedule.prefix import chain
from penstock.schedule.types import Request


@dataclass(slots=True, eq=False)
class _Row:
    """length: tokens known. left: tokens to generate. shared: leading tokens that another row computed. computed: of a
    prefill. blocks: held. since, ends: the sweeps in which it decodes first, and after the last."""

    prompt: int
    length: int
    left: int
    shared: int
    computed: int = 0
    blocks: int = 0
    since: int = -1
    ends: int = -1
    home: "_Home | None" = None


@dataclass(slots=True, eq=False)
class _Home:
    """A tier where rows rest. capacity, used, claimed: blocks, the last what its rows need for the tokens they know.
    due: rows by the sweep, modulo a block, in which they begin a new one."""

    share: float
    capacity: int
    due: list[int]
    used: int = 0
    claimed: int = 0
    rows: int = 0


class Sketch:
    """Sketches runs of a case's job."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._shared = _shared(case)
        self._costs: dict[tuple[object, ...], SweepCost] = {}

    def predict(self, placement: Placement) -> Prediction:
        """What becomes of the job; of a long one only a part is run, as a virtual run does."""
        case, cost = self.case, self._cost(placement)
        return in_part(
            lambda count: _Run(case, placement, cost, self._rows(count)).predict(), case, placement, case.lengths, 0
        )

    def _rows(self, count: int) -> Iterator[tuple[int, _Row]]:
        """Rows in the order in which they ask for room, with what they may generate."""
        for one, shared in zip(self.case.lengths[:count], self._shared, strict=False):
            yield one.most or one.generated, _Row(one.prompt, one.prompt, one.generated, shared)

    def _cost(self, placement: Placement) -> SweepCost:
        """Prices are kept for placements that differ only in what no sweep's price depends on."""
        policy = placement.policy
        key = (placement.homes, policy.slots, policy.kv)
        if key not in self._costs:
            self._costs[key] = SweepCost(self.case.shape, self.case.machine, policy, placement.homes)
        return self._costs[key]


def _shared(case: Case) -> Sequence[int]:
    """Leading tokens of every prompt that an earlier row has, too."""
    if all(one.ids is None for one in case.lengths):
        return [0] * len(case.lengths)
    seen: set[bytes] = set()
    shared = []
    block_tokens = case.shape.footprint.block_tokens
    for one in case.lengths:
        digests = chain(Request("", one.ids, 1), block_tokens) if one.ids is not None else ()
        known = next((i for i, digest in enumerate(digests) if digest not in seen), len(digests))
        shared.append(known * block_tokens)
        seen.update(digests[known:])
    return shared


class _Run:
    def __init__(self, case: Case, placement: Placement, cost: SweepCost, rows: Iterator[tuple[int, _Row]]) -> None:
        self.case, self.placement, self.policy, self.cost = case, placement, placement.policy, cost
        self.block_tokens = case.shape.footprint.block_tokens
        self.coming = rows
        self.waiting: list[tuple[int, int, _Row]] = []  # a heap: who may generate most is first
        self.returning: deque[_Row] = deque()
        self.asked = 0
        self.flight: list[_Row] = []  # in the order of admission; ended ones are struck out late
        self.prefilling: list[_Row] = []
        self.decoding = self.keys = 0
        self.ending: dict[int, list[_Row]] = {}
        self.sweep = 0
        self.grown = -1  # the last sweep whose new blocks are counted
        self.rows = 0
        self.passing = 0  # blocks on the compute tier that go to their homes before the next sweep
        self.here, self.homes = self._homes()
        self.gave_way = False
        self.prices: dict[tuple[float, ...], Priced] = {}

    def _homes(self) -> tuple[_Home, list[_Home]]:
        """The compute tier, and all tiers where KV rests; windows count as what they take of a row of mean length."""
        case = self.case
        demand = Demand(case.groups, self.block_tokens, case.compute, whole=not case.chunking)
        tokens = max(1, case.job.mean_tokens)
        block_bytes = demand.held(tokens) / demand.blocks(tokens)
        homes = {}
        for tier in TIERS:
            room = int(self.placement.kv.get(tier, 0) / block_bytes) if block_bytes else 1 << 60
            homes[tier] = _Home(self.policy.kv.of(tier), max(1, room), [0] * self.block_tokens)
        return homes[case.compute], [home for home in homes.values() if home.share > 0]

    def predict(self) -> Prediction:
        """Runs it."""
        seconds = prefill_s = decode_s = rows = 0.0
        prefill_tokens = decode_tokens = tokens_in = tokens_out = 0
        lanes: dict[str, float] = {}
        steadiest = SteadySweep(0.0, 0, 0, {})
        while self._more():
            spans, finished = self._next()
            prefill = sum(count for _, count in spans)
            priced = self._price(spans, finished)
            decoding, tokens = self.decoding, prefill + self.decoding
            samples = decoding + len(finished)
            tokens_in += sum(row.prompt for row in finished if row.length == row.prompt)
            self._done(finished)
            part = prefill / tokens
            seconds += priced.seconds
            prefill_s += part * priced.seconds
            decode_s += (1 - part) * priced.seconds
            prefill_tokens += prefill
            decode_tokens += decoding
            tokens_out += samples
            rows += decoding + len(spans)
            for lane, busy in priced.lanes.items():
                lanes[lane] = lanes.get(lane, 0.0) + busy
            if decoding + len(spans) >= steadiest.rows:
                steadiest = SteadySweep(priced.seconds, tokens, decoding + len(spans), priced.lanes)
        return Prediction(
            seconds=seconds,
            prefill_s=prefill_s,
            decode_s=decode_s,
            tokens_in=tokens_in,
            prefill_tokens=prefill_tokens,
            decode_tokens=decode_tokens,
            tokens_out=tokens_out,
            sweeps=self.sweep,
            rows_mean=rows / max(1, self.sweep),
            lanes=lanes,
            steady=steadiest,
            hidden_tokens=hidden_tokens(self.case.shape, self.case.machine, self.placement),
            whole=False,
            priced=self.sweep,
        )

    def _more(self) -> bool:
        """Take in requests as a run does; False where no row is left."""
        while len(self.waiting) + len(self.returning) < AHEAD and (one := next(self.coming, None)) is not None:
            most, row = one
            heappush(self.waiting, (-most, self.asked, row))
            self.asked += 1
        return bool(self.rows or self.waiting or self.returning)

    def _next(self) -> tuple[list[tuple[int, int]], list[_Row]]:
        """Spans of prompts in the next sweep, as (first, count), and the rows whose prompts end with it."""
        self.gave_way = False
        phase = self.sweep % self.block_tokens
        self.here.used -= self.passing
        while self.here.used + sum(home.due[phase] for home in self.homes) > self.here.capacity:
            if not self._drop_newest(self.here):
                break
        self.passing = 0
        for home in self.homes:
            while home.used + home.due[phase] > home.capacity and self._drop_newest(home):
                pass
            home.used += home.due[phase]
            home.claimed += home.due[phase]
            self._pass(home, home.due[phase])
        self.grown = self.sweep
        left = self.policy.sweep_tokens - self.decoding
        spans: list[tuple[int, int]] = []
        finished: list[_Row] = []

        def prefill(row: _Row) -> None:
            nonlocal left
            unknown = row.length - row.computed
            wanted = min(unknown, left) if self.case.chunking else unknown
            if wanted <= 0 or (wanted > left and spans):
                return
            count = self._extend(row, wanted)
            if count:
                spans.append((row.computed, count))
                row.computed += count
                left -= count
                if row.computed == row.length:
                    finished.append(row)

        for row in list(self.prefilling):
            if left <= 0:
                break
            if row.since == -1 and row in self.prefilling:
                prefill(row)
        most = min(self.policy.rows, self.policy.sweep_tokens)
        while left > 0 and self.rows < most and not (self.gave_way and self.rows):
            entering = self._enter()
            if entering is None:
                break
            prefill(entering)
        self.prefilling = [row for row in self.prefilling if row.computed < row.length]
        return spans, [row for row in finished if row.computed]

    def _enter(self) -> _Row | None:
        """The next row that waits, where there is room for what it knows beside a block ahead for all others."""
        row = self.returning[0] if self.returning else self.waiting[0][2] if self.waiting else None
        if row is None:
            return None
        needs = -(-row.length // self.block_tokens) - row.shared // self.block_tokens
        home = self._home_with_room(needs)
        if home is None:
            return None
        if self.returning:
            self.returning.popleft()
        else:
            heappop(self.waiting)
        row.computed = row.shared
        row.home = home
        home.claimed += needs
        home.rows += 1
        self._keep_tail(home, 1)
        self.rows += 1
        self.flight.append(row)
        self.prefilling.append(row)
        return row

    def _pass(self, home: _Home, blocks: int) -> None:
        """New blocks are written on the compute tier; those that are full go home before the next sweep."""
        if home is not self.here:
            self.passing += blocks
            self.here.used += blocks

    def _keep_tail(self, home: _Home, rows: int) -> None:
        """A row's last block stays on the compute tier wherever the others are."""
        if home is not self.here:
            home.used -= rows
            home.claimed -= rows
            self.here.used += rows
            self.here.claimed += rows

    def _home_with_room(self, needs: int) -> _Home | None:
        """The home furthest below its share of those that hold so many blocks, and a block ahead for all their rows."""
        if len(self.homes) == 1 or not self.rows:
            homes = self.homes
        else:
            total = sum(home.claimed for home in self.homes) + needs
            homes = sorted(self.homes, key=lambda home: home.claimed - home.share * total)
        here = self.here

        def fits(home: _Home) -> bool:
            if home is here:
                return here.claimed + here.rows + needs <= here.capacity
            return home.claimed + home.rows + needs - 1 <= home.capacity and here.claimed + here.rows < here.capacity

        return next((home for home in homes if not self.rows or fits(home)), None)

    def _extend(self, row: _Row, wanted: int) -> int:
        """Tokens of a prefill for which there are blocks; newer rows give way where it could not go on at all."""
        held, home = row.shared // self.block_tokens + row.blocks, row.home
        assert home is not None  # it is in flight
        while True:
            missing = -(-(row.computed + wanted) // self.block_tokens) - held
            room = max(0, self.here.capacity - self.here.used) if self.rows > 1 else missing
            if missing > room:
                wanted, missing = min(wanted, (held + room) * self.block_tokens - row.computed), room
            if wanted > 0:
                row.blocks += missing
                home.used += missing
                self._pass(home, missing)
                return wanted
            if not self._drop_newest(self.here) or row.home is None:
                return 0
            wanted = 1

    def _drop_newest(self, home: _Home) -> bool:
        """The newest row with KV on a tier gives it up and waits before all others; False where it is the only row."""
        if self.rows <= 1:
            return False
        row = next((row for row in reversed(self.flight) if row.home is home or (row.home and home is self.here)), None)
        if row is None:
            return False
        self.flight.remove(row)
        self.gave_way = True
        if row.since >= 0:
            self.ending[row.ends].remove(row)
            self._stop(row)
            generated = self.sweep - row.since
            row.length += generated + 1
            row.left -= generated
            row.since = row.ends = -1
        else:
            self.prefilling.remove(row)
            self._leave(row, row.blocks, -(-row.length // self.block_tokens) - row.shared // self.block_tokens)
        row.blocks = row.computed = 0
        self.returning.appendleft(row)
        return True

    def _stop(self, row: _Row) -> None:
        """Take away a row that decodes, before the sweep or after it."""
        assert row.home is not None  # it is in flight
        self.decoding -= 1
        self.keys -= row.length + self.sweep - row.since
        phase = (row.since - row.length) % self.block_tokens
        row.home.due[phase] -= 1
        # blocks begun since it decodes: one for each sweep of its phase that has passed
        begun = (self.grown - phase) // self.block_tokens - (row.since - 1 - phase) // self.block_tokens
        self._leave(row, row.blocks + begun, row.blocks + begun)

    def _leave(self, row: _Row, used: int, claimed: int) -> None:
        assert row.home is not None  # it is in flight
        row.home.used -= used
        row.home.claimed -= claimed
        row.home.rows -= 1
        self._keep_tail(row.home, -1)
        row.home = None
        self.rows -= 1

    def _done(self, finished: Sequence[_Row]) -> None:
        """A sweep further: rows end, and those whose prompts have ended decode."""
        self.keys += self.decoding
        self.sweep += 1
        for row in self.ending.pop(self.sweep, ()):
            self._stop(row)
        for row in finished:
            row.since, row.left = self.sweep, row.left - 1
            row.ends = self.sweep + row.left
            if row.left <= 0 or row.home is None:
                self._leave(row, row.blocks, row.blocks)
                continue
            self.decoding += 1
            self.keys += row.length
            row.home.due[(row.since - row.length) % self.block_tokens] += 1
            self.ending.setdefault(row.ends, []).append(row)
        if len(self.flight) > 2 * self.rows + 64:
            self.flight = [row for row in self.flight if row.home is not None]

    def _price(self, spans: Sequence[tuple[int, int]], finished: Sequence[_Row]) -> Priced:
        """Sweeps that are alike to a fiftieth are priced once."""
        tokens = self.decoding + sum(count for _, count in spans)
        calls = -(-tokens // self.policy.batch_tokens)
        decoding = rounded(self.decoding)
        loads = []
        if self.decoding:
            loads.append((decoding, rounded(self.keys / self.decoding), 1.0, decoding))
        if spans:
            number = len(spans)
            first, count = (sum(amounts) / number for amounts in zip(*spans, strict=True))
            loads.append((float(number), rounded(first), rounded(count), float(len(finished))))
        key = (float(calls), *(amount for load in loads for amount in load))
        found = self.prices.get(key)
        if found is None:
            found = self.prices[key] = self.cost.price(_loads(loads, calls))
        return found


def _loads(parts: Sequence[tuple[float, float, float, float]], calls: int) -> list[Load]:
    """Micro-batches: those of rows that decode and those of prompts are priced apart where there are several."""
    spans = [Spans(number, first, count) for number, first, count, _ in parts]
    samples = [part[3] for part in parts]
    if len(parts) == 1 or calls == 1:
        return [Load(tuple(spans), sum(samples), calls)]
    tokens = [number * count for number, _, count, _ in parts]
    decode_calls = min(calls - 1, max(1, round(calls * tokens[0] / sum(tokens))))
    return [
        Load((span,), sampled, number)
        for span, sampled, number in zip(spans, samples, (decode_calls, calls - decode_calls), strict=True)
    ]
