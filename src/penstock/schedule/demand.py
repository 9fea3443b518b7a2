"""How many bytes of KV a row asks of each tier, by its length alone."""

from collections.abc import Mapping, Sequence

from penstock.plan.policy import Tier
from penstock.schedule.types import GroupSpec


class Demand:
    """Block arithmetic of one model: every group takes a block for the same ``block_tokens`` positions.

    whole: prefill is never cut, so that all its blocks are on the tier of new keys at once.
    """

    def __init__(self, groups: Sequence[GroupSpec], block_tokens: int, kv_tier: Tier, whole: bool) -> None:
        self._block_tokens = block_tokens
        self._kv_tier = kv_tier
        self._whole = whole
        self._windows = [
            (group.block_bytes, reach)
            for group in groups
            if (reach := group.reach(block_tokens)) is not None and not whole
        ]
        self.windowed = any(group.window is not None for group in groups)  # blocks are left behind
        self.stride_bytes = sum(group.block_bytes for group in groups)  # one block in every group
        self.endless_bytes = self.stride_bytes - sum(
            size for size, _ in self._windows
        )  # one in every group without window

    def blocks(self, tokens: int) -> int:
        """Blocks of each group that cover this many positions."""
        return -(-tokens // self._block_tokens)

    def held(self, length: int) -> int:
        """Bytes of a row of this length, wherever they lie."""
        return self.stride_bytes + self._full_bytes(self.blocks(length) - 1)

    def _full_bytes(self, blocks: int) -> int:
        """Bytes of this many full blocks in a row, less what windows have left behind."""
        return blocks * self.endless_bytes + sum(size * min(blocks, reach) for size, reach in self._windows)

    def peak(self, length: int, home: Tier) -> dict[Tier, int]:
        """Bytes per tier at most while positions up to ``length`` are computed and full blocks rest on ``home``."""
        if home == self._kv_tier:
            return {home: self.held(length)}
        blocks = self.blocks(length)
        return {
            self._kv_tier: self.stride_bytes * (blocks if self._whole else 1),
            home: self._full_bytes(blocks - 1),
        }

    def fits_in_parts(self, length: int, home: Tier, below: Sequence[Tier], room: Mapping[Tier, int]) -> bool:
        """Whether a row of this length has room, its oldest blocks on tiers below its home. room: bytes by tier.

        No promise where windows leave gaps on every tier, nor where a prompt that is not cut has to be on the compute
        tier as a whole.
        """
        needs, stride = self.peak(length, home), self.stride_bytes
        if (
            self._whole
            or self.windowed
            or any(need > room.get(tier, 0) for tier, need in needs.items() if tier != home)
        ):
            return False
        here, *lower = (max(0, room.get(tier, 0)) // stride * stride for tier in (home, *below))
        return here > 0 and needs[home] <= here + sum(lower)

    def longest(self, wanted: int, homes: Sequence[Tier], capacity: Mapping[Tier, int]) -> int:
        """Positions up to ``wanted`` that one row alone can compute, at its best home and maybe below."""

        def fits(length: int) -> bool:
            return any(
                all(need <= capacity.get(tier, 0) for tier, need in self.peak(length, home).items())
                or self.fits_in_parts(length, home, homes[at + 1 :], capacity)
                for at, home in enumerate(homes)
            )

        if fits(wanted):
            return wanted
        enough, too_many = 0, wanted
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            enough, too_many = (middle, too_many) if fits(middle) else (enough, middle)
        return enough
