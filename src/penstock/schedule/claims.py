"""What rows in flight ask of each tier, and where one more would find room."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from penstock.plan.policy import TIERS, Shares, Tier
from penstock.schedule.room import Room
from penstock.schedule.types import Block, Row


class Claims:
    """Bytes that rows in flight claim: for the tokens they know, and one block ahead of each.

    Every row that shares a block claims it; what that counts twice comes off again when room is looked for. kv: shares
    that homes are to have of all KV.
    """

    def __init__(self, room: Room, kv: Shares) -> None:
        self._room, self._demand, self._pool, self._kv = room, room.demand, room.pool, kv
        self._promised = dict.fromkeys(TIERS, 0)
        self._resting = dict.fromkeys(TIERS, 0)  # what will lie on each home
        # rows of as many blocks claim the same
        alike = Counter((row.home, self._demand.blocks(row.length)) for row in room.rows.values())
        for (home, blocks), number in alike.items():
            self._count(home, blocks * room.block_tokens, number)

    def add(self, row: Row) -> None:
        """Count the claims of a row in flight."""
        self._count(row.home, row.length, 1)

    def _count(self, home: Tier, length: int, number: int) -> None:
        stride = self._demand.stride_bytes
        self._promised[home] += number * (self._demand.peak(length, home)[home] + stride)
        if home != self._room.kv_tier:
            self._promised[self._room.kv_tier] += number * stride  # its tail; prefills take what room they find
        self._resting[home] += number * self._demand.held(length)

    def home_with_room(self, row: Row) -> Tier | None:
        """The tier furthest below its share of KV among those that hold the row's known tokens.

        Where none holds them whole, the fastest on which they can begin, while their oldest blocks sink below it.
        """
        total = sum(self._resting.values()) + self._demand.held(row.length)

        def short(home: Tier) -> float:
            return self._kv.of(home) * total - self._resting[home]

        shared, homes, rooms = self._shared(row), self._room.homes, self._rooms()
        for home in sorted(homes, key=short, reverse=True):
            needs = self._demand.peak(row.length, home)
            needs[home] -= sum(self._room.groups[b.group].block_bytes for b in shared if b.tier == home)
            if all(need <= rooms[tier] for tier, need in needs.items()):
                return home
        parts = (h for at, h in enumerate(homes) if self._demand.fits_in_parts(row.length, h, homes[at + 1 :], rooms))
        return next(parts, None)

    def _rooms(self) -> Mapping[Tier, int]:
        """Bytes of each tier that nobody claims: what rows claim beyond their home is below it."""
        rooms = {t: self._pool.capacity(t) - self._promised[t] + self._counted_twice(t) for t in TIERS}
        for home, below in pairwise(self._room.homes):
            if rooms[home] < 0:
                rooms[home], rooms[below] = 0, rooms[below] + rooms[home]
        return rooms

    def _shared(self, row: Row) -> list[Block]:
        """Blocks of rows in flight that the row would take over, for as long as it lives.

        Lingering ones cost their bytes. Windows leave theirs behind, and the row needs as many of its own then.
        """
        blocks = (block for table in self._room.prefixes.longest(row) for block in table if block is not None)
        return [b for b in blocks if b.references and self._room.groups[b.group].window is None]

    def _counted_twice(self, tier: Tier) -> int:
        """Bytes of a tier that its rows claim more than once, at least.

        References of rows with another home claim nothing here; of those no more is known than how many there may be.
        """
        doubled = self._pool.doubled(tier)
        if not doubled or self._room.homes == (tier,):
            return doubled
        elsewhere = sum(row.listed for row in self._room.rows.values() if row.home != tier)
        return max(0, doubled - elsewhere * self._demand.endless_bytes)
