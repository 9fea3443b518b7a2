"""KV blocks as integers: ids per (group, tier), lowest free first, and bytes in use against each tier's capacity."""

import heapq
from collections.abc import Mapping, Sequence

from penstock.plan.policy import TIERS, Tier
from penstock.schedule.types import Block, GroupSpec, Move


class BlockPool:
    """Hands out blocks within ``capacity`` bytes per tier (absent tiers hold none)."""

    def __init__(self, groups: Sequence[GroupSpec], capacity: Mapping[Tier, int]) -> None:
        self._sizes = [group.block_bytes for group in groups]
        self._capacity = {tier: capacity.get(tier, 0) for tier in TIERS}
        self._used = dict.fromkeys(TIERS, 0)
        self._freed: dict[tuple[int, Tier], list[int]] = {(g, t): [] for g in range(len(groups)) for t in TIERS}
        self._next = dict.fromkeys(self._freed, 0)

    def capacity(self, tier: Tier) -> int:
        """Bytes that the tier may hold."""
        return self._capacity[tier]

    def used(self, tier: Tier) -> int:
        """Bytes of the tier's blocks in use."""
        return self._used[tier]

    def free(self, tier: Tier) -> int:
        """Bytes of the tier that are left."""
        return self._capacity[tier] - self._used[tier]

    def take(self, group: int, tier: Tier) -> Block:
        """A block with one reference; the caller has seen to it that the tier has room (MemoryError where not)."""
        return Block(group, self._claim(group, tier), tier)

    def release(self, block: Block) -> None:
        """Give up one reference; the last one frees the block."""
        block.references -= 1
        if block.references == 0:
            self._return(block)

    def move(self, block: Block, tier: Tier) -> Move:
        """Give a block, and so every row that refers to it, a place on another tier; its bytes follow by the Move."""
        target = self._claim(block.group, tier)
        self._return(block)
        source = (block.tier, block.id)
        block.tier, block.id = tier, target
        return Move(block.group, source, (tier, target))

    def _claim(self, group: int, tier: Tier) -> int:
        if self._sizes[group] > self.free(tier):
            raise MemoryError(f"{tier} has {self.free(tier)} bytes left for a KV block of {self._sizes[group]}")
        self._used[tier] += self._sizes[group]
        freed = self._freed[group, tier]
        if freed:
            return heapq.heappop(freed)
        self._next[group, tier] += 1
        return self._next[group, tier] - 1

    def _return(self, block: Block) -> None:
        self._used[block.tier] -= self._sizes[block.group]
        heapq.heappush(self._freed[block.group, block.tier], block.id)
