"""Which tokens are computed in the next sweep, and where their KV lies: a pure function of requests and budgets."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Policy, Tier
from penstock.schedule.demand import Demand
from penstock.schedule.packing import pack
from penstock.schedule.pool import BlockPool
from penstock.schedule.types import Block, GroupSpec, Move, Request, Row, Span, Sweep
from penstock.units import format_bytes


class Scheduler:
    """Turns requests into sweeps: ``next()`` says what to compute, ``done()`` takes what came of it.

    capacity: bytes of KV per tier. New KV is written on ``compute_tier``; a block that is full rests on its row's home,
    where the next sweep's moves carry it, while the last, partly filled one stays. When a tier is short, the newest
    row gives way: its blocks move to a lower tier that the policy gives a share of KV, or it is dropped and recomputed
    later; so the oldest row always goes on. A row that memory cannot hold to its end, even alone, generates as many
    tokens as fit (``Row.limit``). chunking: a prefill may be cut into several spans; where not, it goes whole, in a
    micro-batch of its own if it is longer than one, and a sweep may then exceed ``policy.sweep_tokens`` by it.

    continuous: at most ``policy.rows`` rows; every row past its known tokens takes one token of a sweep, the oldest
    prefills take the rest. static: groups of batch_size · num_batches rows; ``sweep_tokens`` has no say.
    """

    def __init__(
        self,
        policy: Policy,
        groups: Sequence[GroupSpec],
        capacity: Mapping[Tier, int],
        block_tokens: int,
        compute_tier: Tier,
        chunking: bool = True,
    ) -> None:
        self._policy = policy
        self._groups = tuple(groups)
        self._block_tokens = block_tokens
        self._compute_tier = compute_tier
        self._chunking = chunking
        self._homes: tuple[Tier, ...] = tuple(tier for tier in TIERS if policy.kv.of(tier) > 0) or (compute_tier,)
        self._demand = Demand(groups, block_tokens, compute_tier, whole=not chunking)
        self._pool = BlockPool(groups, capacity)
        self._waiting: deque[Row] = deque()
        self._running: dict[int, Row] = {}  # in the order of admission: the last one gives way first
        self._next_id = 0
        self._micro_batch: dict[int, int] = {}  # static admission: the micro-batch that a row belongs to
        self._moves: list[Move] = []
        self._dropped: list[int] = []
        self._gave_way = False  # whether a row was dropped for want of room in this sweep

    @property
    def running(self) -> int:
        """Rows in flight."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Rows that wait for room, dropped ones included."""
        return len(self._waiting)

    def blocks_in_use(self, tier: Tier) -> int:
        """Bytes of KV blocks in use on a tier."""
        return self._pool.used(tier)

    def row(self, row_id: int) -> Row:
        """A row that runs or waits; KeyError for one that has ended."""
        if row_id in self._running:
            return self._running[row_id]
        for row in self._waiting:
            if row.id == row_id:
                return row
        raise KeyError(row_id)

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
        capacity = {tier: self._pool.capacity(tier) for tier in TIERS}
        last = prompt_tokens + request.max_tokens - 1  # the last token's own KV is never needed
        limit = self._demand.longest(last, self._homes, capacity) - prompt_tokens + 1
        if limit < 1:
            peak = self._demand.peak(prompt_tokens, self._homes[0])
            needs = " and ".join(f"{format_bytes(need)} on {tier}" for tier, need in peak.items())
            given = ", ".join(f"{tier} {format_bytes(capacity[tier])}" for tier in peak)
            raise UserError(
                f"the {prompt_tokens} prompt tokens of request {request.key!r} need {needs} for KV, there are {given}: "
                "give more memory or a shorter prompt"
            )
        row = Row(self._next_id, request, self._homes[0], limit, tables=[[] for _ in self._groups])
        self._next_id += 1
        self._waiting.append(row)
        return row.id

    def abort(self, row_id: int) -> None:
        """Forget a row and free its blocks; between sweeps only. Unknown and ended rows are no error."""
        row = self._running.pop(row_id, None)
        if row is not None:
            self._free(row)
            return
        at = next((at for at, waiting in enumerate(self._waiting) if waiting.id == row_id), None)
        if at is not None:
            del self._waiting[at]

    def recompute(self, row_id: int) -> None:
        """Give up the KV of a row in flight, which keeps its place and computes it again; between sweeps only."""
        row = self._running.get(row_id)
        if row is not None:
            self._give_up(row)

    def next(self) -> Sweep | None:
        """The next sweep, or None where no row is left; report it with ``done`` before asking again."""
        self._gave_way = False
        for row in list(self._running.values()):
            self._leave_behind(row)
        for row in list(self._running.values()):
            if row.id in self._running:
                self._carry_home(row)
        micro_batches = self._static() if self._policy.admission == "static" else self._continuous()
        if not micro_batches:
            if self._running or self._waiting:
                raise RuntimeError(f"{self.running} rows run and {self.waiting} wait, but none can go on")
            return None
        sweep = Sweep(tuple(micro_batches), tuple(self._moves), tuple(self._dropped))
        self._moves, self._dropped = [], []
        return sweep

    def done(self, sweep: Sweep, ended: Collection[int]) -> tuple[int, ...]:
        """Take a computed sweep; ``ended``: rows whose sampled token was their last (end of sequence, stop string).

        Returns the rows that are finished: those and the ones at their limit. Their blocks are free at once. Rows that
        were aborted since are passed over.
        """
        finished = []
        for span in (span for batch in sweep.micro_batches for span in batch):
            row = self._running.get(span.row)
            if row is None:
                continue
            row.computed = span.first + span.count
            if span.samples:
                row.generated += 1
                if row.id in ended or row.generated >= row.limit:
                    finished.append(row.id)
                    self._free(self._running.pop(row.id))
        return tuple(finished)

    def _continuous(self) -> list[tuple[Span, ...]]:
        rows = list(self._running.values())
        decoding = [row for row in rows if _decodes(row)]
        left = self._policy.sweep_tokens - len(decoding)
        due = sum(self._tail_room(row) == 0 for row in decoding)  # blocks that decode rows behind will take
        spans: list[Span] = []
        prefills = 0

        def prefill(row: Row) -> None:
            nonlocal left, prefills
            unknown = row.length - row.computed
            wanted = min(unknown, left) if self._chunking else unknown
            if (wanted > left and prefills) or not wanted:
                return  # a whole prefill waits for a sweep with room; the oldest one never does
            count = self._extend(row, wanted, spare=due * self._demand.stride_bytes)
            if count:
                spans.append(_span(row, count))
                left -= count
                prefills += 1

        for row in rows:
            if row.id not in self._running:
                continue  # gave way to an older one
            if _decodes(row):
                due -= self._tail_room(row) == 0
                if self._extend(row, 1):
                    spans.append(_span(row, 1))
            else:
                prefill(row)
        most = min(self._policy.rows, self._policy.sweep_tokens)
        if self._running and self._gave_way:
            most = 0  # who was dropped a moment ago would come straight back
        for row in self._admit(most, lambda: left > 0):
            prefill(row)
        return pack(spans, self._policy.batch_tokens, cut=self._chunking)

    def _static(self) -> list[tuple[Span, ...]]:
        size, number = self._policy.batch_size or self._policy.rows, self._policy.num_batches or 1
        if not self._running:
            self._micro_batch = {row.id: at // size for at, row in enumerate(self._admit(size * number, lambda: True))}
        prefilling = [row for row in self._running.values() if not _decodes(row)]
        batches = self._prefill_batches(prefilling, number)
        if not any(batches):
            batches = [[] for _ in range(number)]
            for row in list(self._running.values()):
                if row.id in self._running and _decodes(row) and self._extend(row, 1):
                    batches[self._micro_batch[row.id]].append(_span(row, 1))
        return [part for spans in batches for part in pack(spans, self._policy.batch_tokens, self._chunking)]

    def _prefill_batches(self, rows: Sequence[Row], number: int) -> list[list[Span]]:
        """Static admission's prefill: each micro-batch takes at most ``batch_tokens`` of its rows' tokens a sweep."""
        batches: list[list[Span]] = [[] for _ in range(number)]
        room = [self._policy.batch_tokens] * number
        for row in rows:
            if row.id not in self._running:
                continue  # gave way to an older one
            at = self._micro_batch[row.id]
            unknown = row.length - row.computed
            if unknown > room[at] and not self._chunking and batches[at]:
                continue
            count = self._extend(row, min(unknown, room[at]) if self._chunking else unknown)
            if count:
                batches[at].append(_span(row, count))
                room[at] -= count
        return batches

    def _admit(self, most: int, more: Callable[[], bool]) -> Iterator[Row]:
        """Rows that enter, oldest request first, while there are fewer than ``most`` and a home with room for each.

        Room is counted by what rows in flight need for the tokens they know, and a block ahead for each of them.
        """
        if not self._waiting or len(self._running) >= most:
            return
        promised = dict.fromkeys(TIERS, 0)
        resting = dict.fromkeys(TIERS, 0)
        for row in self._running.values():
            self._promise(row, promised, resting)
        while self._waiting and len(self._running) < most and more():
            row = self._waiting[0]
            home = self._home_with_room(row, promised, resting)
            if home is None:
                return
            row.home = home
            self._running[row.id] = self._waiting.popleft()
            self._promise(row, promised, resting)
            yield row

    def _promise(self, row: Row, promised: dict[Tier, int], resting: dict[Tier, int]) -> None:
        """Count a row's claims: bytes for its known tokens and one block ahead, and what will rest at its home."""
        stride = self._demand.stride_bytes
        promised[row.home] += self._demand.peak(row.length, row.home)[row.home] + stride
        if row.home != self._compute_tier:
            promised[self._compute_tier] += stride  # its tail; prefills take what room they find there
        resting[row.home] += self._demand.held(row.length)

    def _home_with_room(self, row: Row, promised: Mapping[Tier, int], resting: Mapping[Tier, int]) -> Tier | None:
        """The tier furthest below its share of KV among those that hold the row's known tokens."""
        needs = {home: self._demand.peak(row.length, home) for home in self._homes}
        total = sum(resting.values()) + self._demand.held(row.length)

        def short(home: Tier) -> float:
            return self._policy.kv.of(home) * total - resting[home]

        for home in sorted(self._homes, key=short, reverse=True):
            if all(promised[tier] + need <= self._pool.capacity(tier) for tier, need in needs[home].items()):
                return home
        return None

    def _tail_room(self, row: Row) -> int:
        """Positions that the row's blocks have left beyond what is computed."""
        return len(row.tables[0]) * self._block_tokens - row.computed if row.tables else 1

    def _extend(self, row: Row, wanted: int, spare: int = 0) -> int:
        """Give a row blocks for its next tokens; returns for how many of ``wanted`` there is room, maybe none.

        spare: bytes of the compute tier to leave alone, unless the row could not go on at all. A prefill that may not
        be cut gets all or nothing.
        """
        held, stride = self._tail_room(row), self._demand.stride_bytes
        missing = self._demand.blocks(max(0, wanted - held)) if row.tables else 0
        if not missing:
            return wanted
        least = missing if not self._chunking else 1 if held == 0 else 0
        affordable = min(missing, max(0, self._pool.free(self._compute_tier) - spare) // stride)
        if affordable < least:
            if not self._make_room(self._compute_tier, least * stride, row):
                return 0
            affordable = least
        for group, table in enumerate(row.tables):
            table.extend(self._pool.take(group, self._compute_tier) for _ in range(affordable))
        return min(wanted, held + affordable * self._block_tokens)

    def _leave_behind(self, row: Row) -> None:
        """Free the blocks that no window reaches any more."""
        for spec, table in zip(self._groups, row.tables, strict=True):
            if spec.window is None:
                continue
            index = max(0, row.computed - spec.window + 1) // self._block_tokens - 1
            while index >= 0 and (block := table[index]) is not None:
                self._pool.release(block)
                table[index] = None
                index -= 1

    def _carry_home(self, row: Row) -> None:
        """Move the blocks that have become full from the compute tier to the row's home; newer rows give way."""
        while row.home != self._compute_tier:
            home, blocks = row.home, self._full_blocks(row, self._compute_tier)
            if not self._make_room(home, self._bytes(blocks), row):
                return  # dropped, or older rows fill its home: they stay where they are for another sweep
            if row.home == home:
                self._moves += [self._pool.move(block, home) for block in blocks]
                return

    def _full_blocks(self, row: Row, tier: Tier) -> list[Block]:
        """The row's full blocks on a tier, oldest first in each group."""
        found: list[Block] = []
        for table in row.tables:
            trailing: list[Block] = []
            for index in range(row.computed // self._block_tokens - 1, -1, -1):
                block = table[index]
                if block is None or (block.tier != tier == self._compute_tier):
                    break  # what lies before was left behind, or carried home in an earlier sweep
                if block.tier == tier:
                    trailing.append(block)
            found += reversed(trailing)
        return found

    def _bytes(self, blocks: Sequence[Block]) -> int:
        return sum(self._groups[block.group].block_bytes for block in blocks)

    def _make_room(self, tier: Tier, need_bytes: int, row: Row) -> bool:
        """Free bytes on a tier for a row: newer rows, then the row itself, are demoted or dropped, newest first.

        False where that was not enough: the row was dropped, or it holds nothing there and older rows hold the rest.
        """
        while self._pool.free(tier) < need_bytes:
            victim = self._newest_holding(tier, row)
            if victim is None:
                return False
            if not self._demote(victim, tier):
                self._drop(victim)
                if victim is row:
                    return False
        return True

    def _newest_holding(self, tier: Tier, oldest: Row) -> Row | None:
        """The newest row, ``oldest`` at the oldest, that holds blocks on a tier."""
        for row in reversed(self._running.values()):
            if any(block and block.tier == tier for table in row.tables for block in reversed(table)):
                return row
            if row is oldest:
                return None
        return None

    def _demote(self, row: Row, tier: Tier) -> bool:
        """Move a row's full blocks from its home to a lower one with room, its home from now on; False if none has."""
        blocks = self._full_blocks(row, tier) if row.home == tier else []
        for lower in self._homes:
            below = TIERS.index(lower) > TIERS.index(tier)
            if blocks and below and self._bytes(blocks) <= self._pool.free(lower):
                self._moves += [self._pool.move(block, lower) for block in blocks]
                row.home = lower
                return True
        return False

    def _drop(self, row: Row) -> None:
        """Give up a row's KV; it waits, before all others, to be computed again."""
        self._give_up(self._running.pop(row.id))
        self._waiting.appendleft(row)
        self._gave_way = True

    def _give_up(self, row: Row) -> None:
        self._free(row)
        row.computed = 0
        row.tables = [[] for _ in self._groups]
        self._dropped.append(row.id)

    def _free(self, row: Row) -> None:
        for table in row.tables:
            for block in table:
                if block is not None:
                    self._pool.release(block)


def _decodes(row: Row) -> bool:
    """Whether a single token, the last known one, is left to compute."""
    return row.computed > 0 and row.length - row.computed == 1


def _span(row: Row, count: int) -> Span:
    return Span(row.id, row.computed, count, samples=row.computed + count == row.length)
