"""How loads and products of a sweep overlap.

A page is loaded while earlier ones are computed, as far as the ring of slots lets it: load i begins when load i - 1 has
ended and slot i - slots is free, and compute i begins when load i and compute i - 1 have ended. What is carried for a
layer besides, KV and activations, takes no slot: it comes in portions, at most a layer ahead, while other portions are
computed.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Up:
    """Seconds on both links towards the compute tier, page by page."""

    reads: list[float]
    uploads: list[float]

    @classmethod
    def of(cls, lanes: Sequence[Mapping[str, float]]) -> "Up":
        """Seconds of pages from their busy lanes."""
        return cls([busy.get("disk→cpu", 0.0) for busy in lanes], [busy.get("cpu→gpu", 0.0) for busy in lanes])

    def any(self) -> bool:
        """Whether anything is carried at all."""
        return any(self.reads) or any(self.uploads)


def pipelined(
    compute: Sequence[float], pages: Up, portions: Up, streamed: Sequence[bool], slots: int, fixed: float
) -> float:
    """Seconds of a sweep amid sweeps like it: the second of two, which has what the first fetched ahead at its end."""
    if not pages.any() and not portions.any():
        return sum(compute) + fixed
    read_end = upload_end = now = first_end = ahead = 0.0
    freed = deque([0.0] * slots)  # when each slot was last given back, oldest first
    steps = list(zip(compute, pages.reads, pages.uploads, portions.reads, portions.uploads, streamed, strict=True))
    for _ in range(2):
        first_end = now
        for compute_s, read_s, upload_s, portions_read_s, portions_upload_s, streams in steps:
            if streams:
                read_end = max(read_end, freed.popleft()) + read_s
                upload_end = max(upload_end, read_end) + upload_s
                now = max(now, upload_end)
            begun = now
            now += compute_s
            if portions_read_s or portions_upload_s:
                read_end = max(read_end, ahead) + portions_read_s
                upload_end = max(upload_end, read_end) + portions_upload_s
                now = max(now, upload_end)
                ahead = begun
            if streams:
                freed.append(now)
        now += fixed
    return now - first_end
