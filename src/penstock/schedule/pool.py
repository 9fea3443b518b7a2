"""KV blocks as integers: ids per (group, tier), lowest free first, and bytes in use against each tier's capacity."""

import heapq
from collections.abc import Callable, Mapping, Sequence

from penstock.plan.policy import TIERS, Tier
from penstock.schedule.types import Block, GroupSpec, Move


class BlockPool:
    """Hands out blocks within ``capacity`` bytes per tier (absent tiers hold none).

    A block whose last reference is released may linger: it keeps its bytes for a row to come, counts as free, and is
    evicted when they are needed, the one released longest ago first. forget: told of each block with a digest whose
    bytes are given away.
    """

    def __init__(
        self, groups: Sequence[GroupSpec], capacity: Mapping[Tier, int], forget: Callable[[Block], None] | None = None
    ) -> None:
        self._groups = tuple(groups)
        self._capacity = {tier: capacity.get(tier, 0) for tier in TIERS}
        self._used = dict.fromkeys(TIERS, 0)
        self._doubled = dict.fromkeys(TIERS, 0)
        self._lingering: dict[Tier, dict[tuple[int, int], Block]] = {tier: {} for tier in TIERS}
        self._lingering_bytes = dict.fromkeys(TIERS, 0)
        self._freed: dict[tuple[int, Tier], list[int]] = {(g, t): [] for g in range(len(groups)) for t in TIERS}
        self._next = dict.fromkeys(self._freed, 0)
        self._forget = forget

    def capacity(self, tier: Tier) -> int:
        """Bytes that the tier may hold."""
        return self._capacity[tier]

    def used(self, tier: Tier) -> int:
        """Bytes of the tier's blocks in use, lingering ones included."""
        return self._used[tier]

    def free(self, tier: Tier) -> int:
        """Bytes of the tier that a new block may take, those of lingering ones included."""
        return self._capacity[tier] - self._used[tier] + self._lingering_bytes[tier]

    def doubled(self, tier: Tier) -> int:
        """Bytes that sharing saves on the tier: every reference to a block but the first counts.

        Blocks of windows are left out, because their rows need as many of their own when they have moved on.
        """
        return self._doubled[tier]

    def take(self, group: int, tier: Tier) -> Block:
        """A block with one reference; the caller has seen to it that the tier has room (MemoryError where not)."""
        return Block(group, self._claim(group, tier), tier)

    def share(self, block: Block) -> None:
        """Add a reference; a block that lingers is in use again."""
        if block.references == 0:
            self._revive(block)
        else:
            self._doubled[block.tier] += self._endless_bytes(block)
        block.references += 1

    def release(self, block: Block, linger: bool = False) -> None:
        """Give up one reference; without the last one the block is free, or lingers."""
        block.references -= 1
        if block.references:
            self._doubled[block.tier] -= self._endless_bytes(block)
        elif linger:
            self._lingering[block.tier][block.group, block.id] = block
            self._lingering_bytes[block.tier] += self._bytes(block)
        else:
            self._free(block)

    def evict(self, block: Block) -> None:
        """Free a block that lingers."""
        self._revive(block)
        self._free(block)

    def move(self, block: Block, tier: Tier) -> Move:
        """Give a block, and so every row that refers to it, a place on another tier; its bytes follow by the Move."""
        target = self._claim(block.group, tier)
        self._vacate(block)
        doubled = (block.references - 1) * self._endless_bytes(block)
        self._doubled[block.tier] -= doubled
        self._doubled[tier] += doubled
        source = (block.tier, block.id)
        block.tier, block.id = tier, target
        return Move(block.group, source, (tier, target))

    def _bytes(self, block: Block) -> int:
        return self._groups[block.group].block_bytes

    def _endless_bytes(self, block: Block) -> int:
        return self._bytes(block) if self._groups[block.group].window is None else 0

    def _claim(self, group: int, tier: Tier) -> int:
        size = self._groups[group].block_bytes
        if size > self.free(tier):
            raise MemoryError(f"{tier} has {self.free(tier)} bytes left for a KV block of {size}")
        while size > self._capacity[tier] - self._used[tier]:
            self.evict(next(iter(self._lingering[tier].values())))
        self._used[tier] += size
        freed = self._freed[group, tier]
        if freed:
            return heapq.heappop(freed)
        self._next[group, tier] += 1
        return self._next[group, tier] - 1

    def _revive(self, block: Block) -> None:
        del self._lingering[block.tier][block.group, block.id]
        self._lingering_bytes[block.tier] -= self._bytes(block)

    def _free(self, block: Block) -> None:
        self._vacate(block)
        if block.digest is not None and self._forget is not None:
            self._forget(block)

    def _vacate(self, block: Block) -> None:
        self._used[block.tier] -= self._bytes(block)
        heapq.heappush(self._freed[block.group, block.tier], block.id)
