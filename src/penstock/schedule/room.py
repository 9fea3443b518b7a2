"""The rows in flight and their blocks: taking over, growing, going home, and giving way to older rows."""

import heapq
from collections.abc import Callable, Mapping, Sequence

from penstock.plan.policy import TIERS, Tier
from penstock.schedule.demand import Demand
from penstock.schedule.pool import BlockPool
from penstock.schedule.prefix import PrefixIndex
from penstock.schedule.types import Block, GroupSpec, Move, Row


class Room:
    """Gives rows their blocks; where a tier is short, the newest row gives way.

    rows: in flight, in the order of admission. homes: tiers where full blocks may rest, fastest first. chunking: a row
    may get blocks for a part of what it wants. give_way: told of each row that is dropped. moves, dropped: what has
    happened since they were last emptied. shared_tokens: prompt tokens that were taken over, not computed, so far.
    """

    def __init__(
        self,
        groups: Sequence[GroupSpec],
        capacity: Mapping[Tier, int],
        block_tokens: int,
        kv_tier: Tier,
        homes: Sequence[Tier],
        chunking: bool,
        give_way: Callable[[Row], None],
    ) -> None:
        self.groups, self.block_tokens, self.kv_tier = tuple(groups), block_tokens, kv_tier
        self.homes = tuple(homes)
        self.demand = Demand(groups, block_tokens, kv_tier, whole=not chunking)
        self.prefixes = PrefixIndex(groups, block_tokens)
        self.pool = BlockPool(groups, capacity, self.prefixes.forget)
        self.rows: dict[int, Row] = {}
        self.moves: list[Move] = []
        self.dropped: list[int] = []
        self.shared_tokens = 0
        self._exhausted: set[Tier] = set()  # nothing more sinks from these before a sweep is computed
        self._sinking: dict[Tier, list[tuple[int, int]]] = {}  # (- turn, id) of rows that may sink, heaps
        self._turns = 0
        self._last_holder = -1  # no row of a later turn holds blocks
        self._chunking = chunking
        self._give_way = give_way

    def admit(self, row: Row, home: Tier) -> None:
        """Let a row in, as the newest."""
        row.home, row.turn = home, self._turns
        self._turns += 1
        self.rows[row.id] = row

    def next_sweep(self) -> None:
        """Look again at what may sink: rows have more full blocks since the last sweep was computed."""
        self._exhausted.clear()
        self._sinking.clear()

    def begin(self, row: Row) -> bool:
        """Let a row take over what is computed of its prompt; False while an older row computes more of it."""
        if row.begun:
            return True
        if self.prefixes.waits(row):
            return False
        tables = self.prefixes.longest(row)
        known = len(tables[0]) if tables else 0
        row.awaits = self.prefixes.awaited(row, known)
        if row.awaits is not None:
            return False
        self._take_over(row, tables, known)
        self.carry_home(row)  # at once: the tier of new keys may be full of what it took over, and its tail goes there
        return row.id in self.rows

    def _take_over(self, row: Row, tables: list[list[Block | None]], known: int) -> None:
        for table in tables:
            for block in table:
                if block is not None:
                    self.pool.share(block)
        row.tables, row.computed, row.listed, row.begun = tables, known * self.block_tokens, known, True
        if known:
            self._last_holder = max(self._last_holder, row.turn)
            self._may_sink(row)
        self.shared_tokens += row.computed
        self.prefixes.own(row)
        self._unwant(row)

    def tail(self, row: Row) -> int:
        """Positions that the row's blocks have left beyond what is computed."""
        return len(row.tables[0]) * self.block_tokens - row.computed if row.tables else 1

    def extend(self, row: Row, wanted: int, spare: int = 0) -> int:
        """Give a row blocks for its next tokens; returns for how many of ``wanted`` there is room, maybe none.

        spare: bytes of the tier of new keys to leave alone, unless the row could not go on at all. A prefill that may
        not be cut gets all or nothing.
        """
        held, stride = self.tail(row), self.demand.stride_bytes
        missing = self.demand.blocks(max(0, wanted - held)) if row.tables else 0
        if not missing:
            return wanted
        least = missing if not self._chunking else 1 if held == 0 else 0
        if self._affordable(missing, spare) < missing:
            self._sink(self.kv_tier, missing * stride + spare, row)
        affordable = self._affordable(missing, spare)
        if affordable < least:
            if not self._make_room(self.kv_tier, least * stride, row):
                return 0
            affordable = least
        for group, table in enumerate(row.tables):
            table.extend(self.pool.take(group, self.kv_tier) for _ in range(affordable))
        self._last_holder = max(self._last_holder, row.turn)
        return min(wanted, held + affordable * self.block_tokens)

    def _affordable(self, blocks: int, spare: int) -> int:
        """Of so many blocks in every group those that have room where new keys are, and ``spare`` bytes besides."""
        return min(blocks, max(0, self.pool.free(self.kv_tier) - spare) // self.demand.stride_bytes)

    def leave_behind(self, row: Row) -> None:
        """Give up the blocks that no window reaches any more."""
        for spec, table in zip(self.groups, row.tables, strict=True):
            if spec.window is None:
                continue
            reach = spec.reach(self.block_tokens) or 0
            index = max(0, row.computed - spec.window + 1) // self.block_tokens - 1
            while index >= 0 and (block := table[index]) is not None:
                self._release(block, self.prefixes.parting(row, index, reach))
                table[index] = None
                index -= 1

    def carry_home(self, row: Row) -> None:
        """Move the blocks that have become full, where new keys are, to the row's home, or below where that is full.

        Newer rows give way where there is no room at all; blocks that only older rows leave no room for stay where they
        are for another sweep.
        """
        if row.home == self.kv_tier:
            return
        while row.rested < row.computed // self.block_tokens:
            blocks = self._blocks_at(row, row.rested, self.kv_tier)
            nbytes = self._bytes(blocks)
            tier = self._tier_with_room([row.home, *self._below(row.home)], nbytes)
            if tier is None:
                if not self._make_room(row.home, nbytes, row):
                    return
                tier = row.home
            self.moves += [self.pool.move(block, tier) for block in blocks]
            row.rested += 1
            self._may_sink(row)

    def _blocks_at(self, row: Row, index: int, tier: Tier) -> list[Block]:
        """A row's blocks of the same positions, of all groups, that lie on a tier; shared ones too."""
        return [b for table in row.tables if (b := table[index]) is not None and b.tier == tier]

    def _below(self, tier: Tier) -> Sequence[Tier]:
        """Homes slower than a tier, fastest first."""
        return [home for home in self.homes if TIERS.index(home) > TIERS.index(tier)]

    def release(self, row: Row) -> None:
        """Give up a row's blocks and what it wants or owns of its prompt."""
        if row.begun:
            self.prefixes.disown(row)
        else:
            self._unwant(row)
        for table in row.tables:
            for block in reversed(table):  # the last ones are evicted first: they are no use without those before
                if block is not None:
                    self._release(block)

    def restart(self, row: Row) -> None:
        """Give up a row's KV, to be computed again; it shares nothing from now on."""
        self._give_up(row)
        row.chain = ()

    def _give_up(self, row: Row) -> None:
        self.release(row)
        row.computed = row.rested = row.sunk = row.listed = 0
        row.begun, row.awaits = False, None
        row.tables = [[] for _ in self.groups]
        self.dropped.append(row.id)

    def _drop(self, row: Row) -> None:
        """Give up a row's KV; it waits, before all others, to be computed again."""
        del self.rows[row.id]
        self._give_up(row)
        self.prefixes.want(row)  # only now: its own blocks make room at once, they do not linger for it
        self._give_way(row)

    def _release(self, block: Block, linger: bool = True) -> None:
        self.pool.release(block, linger and self.prefixes.wanted(block))

    def _unwant(self, row: Row) -> None:
        for block in self.prefixes.unwant(row):
            self.pool.evict(block)

    def _bytes(self, blocks: Sequence[Block]) -> int:
        return sum(self.groups[block.group].block_bytes for block in blocks)

    def _make_room(self, tier: Tier, need_bytes: int, row: Row) -> bool:
        """Free bytes on a tier for a row: oldest blocks sink, of newer rows first; where that is not enough newer rows,
        then the row itself, are dropped, newest first.

        False where it still was not: the row was dropped, or it holds nothing there and older rows hold the rest. A
        victim that shares all of its blocks frees nothing; then the next one follows.
        """
        while self.pool.free(tier) < need_bytes:
            self._sink(tier, need_bytes)
            if self.pool.free(tier) >= need_bytes:
                break
            victim = self._newest_holding(tier, row)
            if victim is None:
                return False
            self._drop(victim)
            if victim is row:
                return False
        return True

    def _sink(self, tier: Tier, need_bytes: int, oldest: Row | None = None) -> None:
        """Free bytes on a tier, as far as that goes, by what lies there of the rows at home there: of the newest row
        first, and of none older than ``oldest``, the oldest full blocks move to the fastest lower home with room.

        Rows that share some of them find them there too.
        """
        below = self._below(tier)
        if not below or tier in self._exhausted or (oldest is not None and oldest.turn > self._last_holder):
            return
        while (row := self._newest_sinking(tier)) is not None:
            if oldest is not None and row.turn < oldest.turn:
                return
            blocks = self._blocks_at(row, row.sunk, tier)
            lower = self._tier_with_room(below, self._bytes(blocks))
            if lower is None:
                self._exhausted.add(tier)
                return
            self.moves += [self.pool.move(block, lower) for block in blocks]
            row.sunk += 1
            if self.pool.free(tier) >= need_bytes:
                return
        if oldest is None:
            self._exhausted.add(tier)

    def _newest_sinking(self, tier: Tier) -> Row | None:
        """The newest row at home on a tier with full blocks that have not sunk.

        Thousands of rows may have sunk as far as they can, and every block that is wanted asks again.
        """
        if tier not in self._sinking:  # newest first, which is a heap
            self._sinking[tier] = [(-row.turn, row.id) for row in reversed(self.rows.values()) if row.home == tier]
        heap = self._sinking[tier]
        while heap:
            turn, row_id = heap[0]
            row = self.rows.get(row_id)
            if row is not None and row.turn == -turn and row.sunk < self._full(row):
                return row
            heapq.heappop(heap)
        return None

    def _may_sink(self, row: Row) -> None:
        """Count with a row that has more full blocks at home than it had."""
        if (heap := self._sinking.get(row.home)) is not None:
            heapq.heappush(heap, (-row.turn, row.id))

    def _full(self, row: Row) -> int:
        """Leading blocks of a row that are full and at home, or below."""
        return row.rested if row.home != self.kv_tier else row.computed // self.block_tokens

    def _tier_with_room(self, tiers: Sequence[Tier], nbytes: int) -> Tier | None:
        """The first of some tiers that has so many bytes free, or can have by what sinks from there."""
        for tier in tiers:
            if self.pool.free(tier) < nbytes:
                self._sink(tier, nbytes)
            if self.pool.free(tier) >= nbytes:
                return tier
        return None

    def _newest_holding(self, tier: Tier, oldest: Row) -> Row | None:
        """The newest row, ``oldest`` at the oldest, that holds blocks on a tier.

        Thousands of rows may wait in flight without a block, and each asks for one in every sweep.
        """
        if oldest.turn > self._last_holder:
            return None
        held = False
        for row in reversed(self.rows.values()):
            if row.turn > self._last_holder:
                continue
            if any(row.tables):
                held = True
                if any(block and block.tier == tier for table in row.tables for block in reversed(table)):
                    return row
            elif not held:
                self._last_holder = row.turn - 1
            if row is oldest:
                return None
        return None
