"""What a pager takes: a pure function of pages, their homes and the slots of its ring."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.model.pages import Page
from penstock.plan.policy import Tier


@dataclass(frozen=True, slots=True)
class PagerRoom:
    """What a placement takes: whole arenas per tier, the ring, and host buffers between disk and gpu.

    Embeddings do not pass through the ring: their rows are read where they rest.
    """

    fast_bytes: int
    host_bytes: int
    slots: int
    slot_bytes: int
    loaders: int
    staging_bytes: int

    @classmethod
    def of(cls, pages: Sequence[Page], homes: Sequence[Tier], compute_tier: Tier, slots: int) -> "PagerRoom":
        """The room for these pages on these homes; ValueError for a placement that cannot be."""
        if slots < 1 or len(homes) != len(pages) or (compute_tier == "cpu" and "gpu" in homes):
            raise ValueError(f"{slots} slots and homes {sorted(set(homes))} for {len(pages)} pages on {compute_tier}")
        placed = list(zip(pages, homes, strict=True))
        streamed = [page.nbytes for page, home in placed if home != compute_tier and page.kind != "embedding"]
        slots = min(slots, len(streamed))
        loaders = min(slots, 2) or 1  # two, so that the disk has work while one transfer tails off
        via_host = [page.nbytes for page, home in placed if compute_tier == "gpu" and home != "cpu"]
        return cls(
            fast_bytes=sum(page.nbytes for page, home in placed if home == compute_tier),
            host_bytes=sum(page.nbytes for page, home in placed if compute_tier == "gpu" and home == "cpu"),
            slots=slots,
            slot_bytes=max(streamed, default=0),
            loaders=loaders,
            staging_bytes=max(via_host, default=0),
        )
