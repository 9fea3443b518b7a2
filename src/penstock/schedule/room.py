"""The rows in flight and their blocks: taking over, growing, going home, and giving way to older rows."""

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
        compute_tier: Tier,
        homes: Sequence[Tier],
        chunking: bool,
        give_way: Callable[[Row], None],
    ) -> None:
        self.groups, self.block_tokens, self.compute_tier = tuple(groups), block_tokens, compute_tier
        self.homes = tuple(homes)
        self.demand = Demand(groups, block_tokens, compute_tier, whole=not chunking)
        self.prefixes = PrefixIndex(groups, block_tokens)
        self.pool = BlockPool(groups, capacity, self.prefixes.forget)
        self.rows: dict[int, Row] = {}
        self.moves: list[Move] = []
        self.dropped: list[int] = []
        self.shared_tokens = 0
        self._turns = 0
        self._last_holder = -1  # no row of a later turn holds blocks
        self._chunking = chunking
        self._give_way = give_way

    def admit(self, row: Row, home: Tier) -> None:
        """Let a row in, as the newest."""
        row.home, row.turn = home, self._turns
        self._turns += 1
        self.rows[row.id] = row

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
        self.carry_home(row)  # at once: the compute tier may be full of what it took over, and its tail goes there
        return row.id in self.rows

    def _take_over(self, row: Row, tables: list[list[Block | None]], known: int) -> None:
        for table in tables:
            for block in table:
                if block is not None:
                    self.pool.share(block)
        row.tables, row.computed, row.listed, row.begun = tables, known * self.block_tokens, known, True
        if known:
            self._last_holder = max(self._last_holder, row.turn)
        self.shared_tokens += row.computed
        self.prefixes.own(row)
        self._unwant(row)

    def tail(self, row: Row) -> int:
        """Positions that the row's blocks have left beyond what is computed."""
        return len(row.tables[0]) * self.block_tokens - row.computed if row.tables else 1

    def extend(self, row: Row, wanted: int, spare: int = 0) -> int:
        """Give a row blocks for its next tokens; returns for how many of ``wanted`` there is room, maybe none.

        spare: bytes of the compute tier to leave alone, unless the row could not go on at all. A prefill that may not
        be cut gets all or nothing.
        """
        held, stride = self.tail(row), self.demand.stride_bytes
        missing = self.demand.blocks(max(0, wanted - held)) if row.tables else 0
        if not missing:
            return wanted
        least = missing if not self._chunking else 1 if held == 0 else 0
        affordable = min(missing, max(0, self.pool.free(self.compute_tier) - spare) // stride)
        if affordable < least:
            if not self._make_room(self.compute_tier, least * stride, row):
                return 0
            affordable = least
        for group, table in enumerate(row.tables):
            table.extend(self.pool.take(group, self.compute_tier) for _ in range(affordable))
        self._last_holder = max(self._last_holder, row.turn)
        return min(wanted, held + affordable * self.block_tokens)

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
        """Move the blocks that have become full from the compute tier to the row's home; newer rows give way."""
        if row.rested == row.computed // self.block_tokens:
            return
        while row.home != self.compute_tier:
            home, blocks = row.home, self._full_blocks(row, self.compute_tier, row.rested)
            if not self._make_room(home, self._bytes(blocks), row):
                return  # dropped, or older rows fill its home: they stay where they are for another sweep
            if row.home == home:
                self.moves += [self.pool.move(block, home) for block in blocks]
                row.rested = row.computed // self.block_tokens
                return

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
        row.computed = row.rested = row.listed = 0
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

    def _full_blocks(self, row: Row, tier: Tier, first: int = 0) -> list[Block]:
        """The row's full blocks on a tier from index ``first`` on, oldest first in each group, shared ones too."""
        full = slice(first, row.computed // self.block_tokens)
        return [b for table in row.tables for b in table[full] if b is not None and b.tier == tier]

    def _bytes(self, blocks: Sequence[Block]) -> int:
        return sum(self.groups[block.group].block_bytes for block in blocks)

    def _make_room(self, tier: Tier, need_bytes: int, row: Row) -> bool:
        """Free bytes on a tier for a row: newer rows, then the row itself, are demoted or dropped, newest first.

        False where that was not enough: the row was dropped, or it holds nothing there and older rows hold the rest.
        A victim that shares all of its blocks frees nothing; then the next one follows.
        """
        while self.pool.free(tier) < need_bytes:
            victim = self._newest_holding(tier, row)
            if victim is None:
                return False
            if not self._demote(victim, tier):
                self._drop(victim)
                if victim is row:
                    return False
        return True

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

    def _demote(self, row: Row, tier: Tier) -> bool:
        """Move a row's full blocks from its home to a lower one with room, its home from now on; False if none has.

        Rows that share some of them find them there too, and keep their homes.
        """
        blocks = self._full_blocks(row, tier) if row.home == tier else []
        for lower in self.homes:
            below = TIERS.index(lower) > TIERS.index(tier)
            if blocks and below and self._bytes(blocks) <= self.pool.free(lower):
                self.moves += [self.pool.move(block, lower) for block in blocks]
                row.home = lower
                return True
        return False
