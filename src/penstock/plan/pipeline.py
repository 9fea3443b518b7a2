"""How loads and products of a sweep overlap.

A page is loaded while earlier ones are computed, as far as the ring of slots lets it: load i begins when load i - 1 has
ended and slot i - slots is free, and compute i begins when load i and compute i - 1 have ended. What is carried for a
layer besides, KV and activations, takes no slot: it comes in portions, at most a layer ahead, while other portions are
computed.

Pages do not all take the mean time. With two slots a late page holds up both lanes, and an early one gains nothing; a
third slot evens out what lies a page apart. So reads come early and late by their jitter, in the order of Thue and
Morse (1, 0, 0, 1, 0, 1, 1, 0, ...): as many of either, and neither more than twice in a row.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]  # of many sweeps


class Step(NamedTuple):
    """A page of many sweeps: seconds of its compute, of its read from disk and its upload, of the portions carried
    beside it over the same two links (None where no sweep carries any), and whether it streams."""

    compute: Seconds
    read: Seconds
    upload: Seconds
    portions: tuple[Seconds, Seconds] | None
    streams: bool


def pipelined(steps: Sequence[Step], slots: int, fixed: Seconds, jitter: float = 0.0) -> Seconds:
    """Seconds of sweeps, each amid its like: the second of two, which has what the first fetched ahead at its end.

    They are reckoned side by side: thousands of pages take a while, and a hundred sweeps take hardly longer than one.
    fixed: seconds that follow the last page. jitter: how far the reads of pages lie from their mean, as a part of it.
    """
    times = (1 - jitter, 1 + jitter)
    load = 0
    nothing = np.zeros_like(fixed)
    read_end = upload_end = now = first_end = ahead = nothing
    # when each slot was last given back, oldest first; two sweeps fill no more than a slot for each page of theirs
    freed = deque([nothing] * min(slots, 2 * len(steps)))
    for _ in range(2):
        first_end = now
        for step in steps:
            if step.streams:
                read_end = np.maximum(read_end, freed.popleft()) + step.read * times[load.bit_count() & 1]
                load += 1
                upload_end = np.maximum(upload_end, read_end) + step.upload
                now = np.maximum(now, upload_end)
            begun = now
            now = now + step.compute
            if step.portions is not None:
                read, upload = step.portions
                carried = (read > 0) | (upload > 0)
                read_end = np.where(carried, np.maximum(read_end, ahead) + read, read_end)
                upload_end = np.where(carried, np.maximum(upload_end, read_end) + upload, upload_end)
                now = np.where(carried, np.maximum(now, upload_end), now)
                ahead = np.where(carried, begun, ahead)
            if step.streams:
                freed.append(now)
        now = now + fixed
    return now - first_end
