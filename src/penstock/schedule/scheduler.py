"""Which tokens are computed in the next sweep, and where their KV lies: a pure function of requests and budgets."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from heapq import heappop, heappush

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Policy, Tier
from penstock.schedule.claims import Claims
from penstock.schedule.packing import pack
from penstock.schedule.prefix import chain
from penstock.schedule.room import Room
from penstock.schedule.types import GroupSpec, Request, Row, Span, Sweep
from penstock.units import format_bytes

_PATIENCE = 8192  # requests that may pass the oldest one


class Scheduler:
    """Turns requests into sweeps: ``next()`` says what to compute, ``done()`` takes what came of it.

    capacity: bytes of KV per tier. New KV is written on ``kv_tier``; a block that is full rests on its row's home,
    where the next sweep's moves carry it, while the last, partly filled one stays. A row goes whole to a home that has
    room for it; where none has, and when a tier is short, its oldest blocks lie on lower ones that the policy gives a
    share of KV. Where these are full too the newest row is dropped and recomputed later; so the oldest row always goes
    on. A row that memory cannot hold to its end, even alone, generates as many tokens as fit (``Row.limit``). chunking:
    a prefill may be cut into several spans; where not, it goes whole, in a micro-batch of its own if it is longer than
    one, and a sweep may then exceed ``policy.sweep_tokens`` by it.

    continuous: at most ``policy.rows`` rows; every row past its known tokens takes one token of a sweep, the oldest
    prefills take the rest; of those that wait, the ones that may generate most enter first. static: groups of
    batch_size · num_batches rows, in their order; ``sweep_tokens`` has no say.

    sharing: a prompt's full blocks are computed once, and taken over by later rows whose prompts begin alike. Not with
    static admission, nor where prefills may not be cut (recurrent state is no block).
    """

    def __init__(
        self,
        policy: Policy,
        groups: Sequence[GroupSpec],
        capacity: Mapping[Tier, int],
        block_tokens: int,
        kv_tier: Tier,
        chunking: bool = True,
        sharing: bool = True,
    ) -> None:
        self.policy = policy
        self._block_tokens = block_tokens
        self._chunking = chunking
        self._sharing = sharing and chunking and policy.admission != "static" and len(groups) > 0
        homes = tuple(tier for tier in TIERS if policy.kv.of(tier) > 0) or (kv_tier,)
        self._room = Room(groups, capacity, block_tokens, kv_tier, homes, chunking, self._requeue)
        self._waiting: OrderedDict[int, Row] = OrderedDict()
        self._longest: list[tuple[int, int]] = []  # (- tokens to generate, id) of rows that wait, a heap
        self._returning: set[int] = set()  # rows that wait because they were dropped, before all others
        self._next_id = 0
        self._micro_batch: dict[int, int] = {}  # static admission: the micro-batch that a row belongs to
        self._gave_way = 0  # rows dropped for want of room in this sweep

    @property
    def running(self) -> int:
        """Rows in flight."""
        return len(self._room.rows)

    @property
    def waiting(self) -> int:
        """Rows that wait for room, dropped ones included."""
        return len(self._waiting)

    def blocks_in_use(self, tier: Tier) -> int:
        """Bytes of KV blocks in use on a tier, those included that are kept for a row to come."""
        return self._room.pool.used(tier)

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that rows took over from others instead of computing them, so far."""
        return self._room.shared_tokens

    def row(self, row_id: int) -> Row:
        """A row that runs or waits; KeyError for one that has ended."""
        return self._room.rows.get(row_id) or self._waiting[row_id]

    def add(self, request: Request) -> int:
        """Queue a request and return its row's id; ids ascend.

        Raises UserError where the prompt is empty, no token is asked for, or no memory holds the prompt's KV.
        """
        prompt_tokens = len(request.prompt)
        if not prompt_tokens or request.max_tokens < 1:
            raise UserError(
                f"request {request.key!r} has {prompt_tokens} prompt tokens and max_tokens {request.max_tokens}: "
                "both must be at least 1"
            )
        demand, homes = self._room.demand, self._room.homes
        capacity = {tier: self._room.pool.capacity(tier) for tier in TIERS}
        last = prompt_tokens + request.max_tokens - 1  # the last token's own KV is never needed
        limit = demand.longest(last, homes, capacity) - prompt_tokens + 1
        if limit < 1:
            peak = demand.peak(prompt_tokens, homes[0])
            needs = " and ".join(f"{format_bytes(need)} on {tier}" for tier, need in peak.items())
            given = ", ".join(f"{tier} {format_bytes(capacity[tier])}" for tier in peak)
            raise UserError(
                f"the {prompt_tokens} prompt tokens of request {request.key!r} need {needs} for KV, there are {given}: "
                "give more memory or a shorter prompt"
            )
        row = Row(self._next_id, request, homes[0], limit, tables=[[] for _ in self._room.groups])
        if self._sharing:
            row.chain = chain(request, self._block_tokens)
            self._room.prefixes.want(row)
        self._next_id += 1
        self._waiting[row.id] = row
        if self.policy.admission != "static":  # nobody would take it out again
            heappush(self._longest, (-limit, row.id))
        return row.id

    def abort(self, row_id: int) -> None:
        """Forget a row and free its blocks; between sweeps only. Unknown and ended rows are no error."""
        row = self._room.rows.pop(row_id, None) or self._waiting.pop(row_id, None)
        self._returning.discard(row_id)
        if row is not None:
            self._room.release(row)

    def recompute(self, row_id: int) -> None:
        """Give up the KV of a row in flight, which keeps its place and computes it again; between sweeps only.

        It shares nothing from now on: what asked for this makes its KV another than that of prompts like its own.
        """
        row = self._room.rows.get(row_id)
        if row is not None:
            self._room.restart(row)

    def next(self) -> Sweep | None:
        """The next sweep, or None where no row is left; report it with ``done`` before asking again."""
        self._gave_way = 0
        room = self._room
        room.next_sweep()
        if room.demand.windowed:
            for row in room.rows.values():
                room.leave_behind(row)
        if room.homes != (room.kv_tier,):
            for row in list(room.rows.values()):
                if row.id in room.rows:
                    room.carry_home(row)
        micro_batches = self._static() if self.policy.admission == "static" else self._continuous()
        if not micro_batches:
            if room.rows or self._waiting:
                raise RuntimeError(f"{self.running} rows run and {self.waiting} wait, but none can go on")
            return None
        sweep = Sweep(tuple(micro_batches), tuple(room.moves), tuple(room.dropped))
        room.moves, room.dropped = [], []
        return sweep

    def done(self, sweep: Sweep, ended: Collection[int]) -> tuple[int, ...]:
        """Take a computed sweep; ``ended``: rows whose sampled token was their last (end of sequence, stop string).

        Returns the rows that are finished: those and the ones at their limit. Their blocks are free at once. Rows that
        were aborted since are passed over.
        """
        finished = []
        for span in (span for batch in sweep.micro_batches for span in batch):
            row = self._room.rows.get(span.row)
            if row is None:
                continue
            row.computed = span.first + span.count
            if row.chain:
                self._room.prefixes.register(row)
            if span.samples:
                row.generated += 1
                if row.id in ended or row.generated >= row.limit:
                    finished.append(row.id)
                    self._room.release(self._room.rows.pop(row.id))
        return tuple(finished)

    def _continuous(self) -> list[tuple[Span, ...]]:
        room = self._room
        rows = list(room.rows.values())
        tails = {row.id: room.tail(row) for row in rows if _decodes(row)}
        left = self.policy.sweep_tokens - len(tails)
        due = sum(tail == 0 for tail in tails.values())  # blocks that decode rows behind will take
        spans: list[Span] = []
        prefills = 0

        def prefill(row: Row) -> None:
            nonlocal left, prefills
            if not room.begin(row):
                return  # another row is computing what it shares with it
            unknown = row.length - row.computed
            wanted = min(unknown, left) if self._chunking else unknown
            if (wanted > left and prefills) or not wanted:
                return  # a whole prefill waits for a sweep with room; the oldest one never does
            count = room.extend(row, wanted, spare=due * room.demand.stride_bytes)
            if count:
                spans.append(_span(row, count))
                left -= count
                prefills += 1

        for row in rows:
            if row.id not in room.rows:
                continue  # gave way to an older one
            tail = tails.get(row.id)
            if tail is not None:
                due -= tail == 0
                if tail > 0 or room.extend(row, 1):
                    spans.append(Span(row.id, row.computed, 1, True))
            else:
                prefill(row)
        most = min(self.policy.rows, self.policy.sweep_tokens)
        if room.rows and self._gave_way:
            most = 0  # who was dropped a moment ago would come straight back
        for row in self._admit(most, lambda: left > 0):
            prefill(row)
        return pack(spans, self.policy.batch_tokens, cut=self._chunking)

    def _static(self) -> list[tuple[Span, ...]]:
        size, number = self.policy.batch_size or self.policy.rows, self.policy.num_batches or 1
        if not self._room.rows:
            self._micro_batch = {row.id: at // size for at, row in enumerate(self._admit(size * number, lambda: True))}
        prefilling = [row for row in self._room.rows.values() if not _decodes(row)]
        batches = self._prefill_batches(prefilling, number)
        if not any(batches):
            batches = [[] for _ in range(number)]
            for row in list(self._room.rows.values()):
                if row.id in self._room.rows and _decodes(row) and self._room.extend(row, 1):
                    batches[self._micro_batch[row.id]].append(_span(row, 1))
        return [part for spans in batches for part in pack(spans, self.policy.batch_tokens, self._chunking)]

    def _prefill_batches(self, rows: Sequence[Row], number: int) -> list[list[Span]]:
        """Static admission's prefill: each micro-batch takes at most ``batch_tokens`` of its rows' tokens a sweep."""
        batches: list[list[Span]] = [[] for _ in range(number)]
        room = [self.policy.batch_tokens] * number
        for row in rows:
            if row.id not in self._room.rows:
                continue  # gave way to an older one
            at = self._micro_batch[row.id]
            unknown = row.length - row.computed
            if unknown > room[at] and not self._chunking and batches[at]:
                continue
            count = self._room.extend(row, min(unknown, room[at]) if self._chunking else unknown)
            if count:
                batches[at].append(_span(row, count))
                room[at] -= count
        return batches

    def _admit(self, most: int, more: Callable[[], bool]) -> Iterator[Row]:
        """Rows that enter while there are fewer than ``most`` and a home with room for each.

        Room is counted by what rows in flight need for the tokens they know, and a block ahead for each of them.
        """
        rows, waiting = self._room.rows, self._waiting
        if not waiting or len(rows) >= most or not more():
            return
        claims = Claims(self._room, self.policy.kv)
        gave_way = self._gave_way
        while waiting and len(rows) < most and more() and self._gave_way == gave_way:
            row = self._first()
            home = claims.home_with_room(row)
            if home is None:
                return
            self._room.admit(waiting.pop(row.id), home)
            self._returning.discard(row.id)
            claims.add(row)
            yield row

    def _first(self) -> Row:
        """Who enters next: rows that were dropped, then those that may generate most, else the oldest request.

        Were a long one begun last, the end of a job would be many sweeps of few rows. Nobody waits for ever: the oldest
        goes first once very many have passed it.
        """
        oldest = next(iter(self._waiting.values()))
        if oldest.id in self._returning or self.policy.admission == "static" or self._next_id - oldest.id > _PATIENCE:
            return oldest
        while self._longest[0][1] not in self._waiting:
            heappop(self._longest)
        return self._waiting[self._longest[0][1]]

    def _requeue(self, row: Row) -> None:
        """Put a row that was dropped before all others that wait."""
        self._waiting[row.id] = row
        self._returning.add(row.id)
        self._waiting.move_to_end(row.id, last=False)
        self._gave_way += 1


def _decodes(row: Row) -> bool:
    """Whether a single token, the last known one, is left to compute."""
    computed = row.computed
    return computed > 0 and len(row.request.prompt) + row.generated - computed == 1


def _span(row: Row, count: int) -> Span:
    return Span(row.id, row.computed, count, samples=row.computed + count == row.length)
