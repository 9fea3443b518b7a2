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

Step = tuple[float, float, float, float, float, bool]


def pipelined(steps: Sequence[Step], slots: int, fixed: float, jitter: float = 0.0) -> float:
    """Seconds of a sweep amid sweeps like it: the second of two, which has what the first fetched ahead at its end.

    steps: of each page the seconds of its compute, of its read from disk and its upload, of the portions carried beside
    it over the same two links, and whether it streams. fixed: seconds that follow the last. jitter: how far the
    reads of pages lie from their mean, as a part of it.
    """
    times = (1 - jitter, 1 + jitter)
    load = 0
    read_end = upload_end = now = first_end = ahead = 0.0
    # when each slot was last given back, oldest first; two sweeps fill no more than a slot for each page of theirs
    freed = deque([0.0] * min(slots, 2 * len(steps)))
    for _ in range(2):
        first_end = now
        for compute_s, read_s, upload_s, portions_read_s, portions_upload_s, streams in steps:
            if streams:  # compared by hand: this loop runs for thousands of pages, and max() would take most of it
                free = freed.popleft()
                read_end = (read_end if read_end > free else free) + read_s * times[load.bit_count() & 1]
                load += 1
                upload_end = (upload_end if upload_end > read_end else read_end) + upload_s
                if upload_end > now:
                    now = upload_end
            begun = now
            now += compute_s
            if portions_read_s or portions_upload_s:
                read_end = (read_end if read_end > ahead else ahead) + portions_read_s
                upload_end = (upload_end if upload_end > read_end else read_end) + portions_upload_s
                if upload_end > now:
                    now = upload_end
                ahead = begun
            if streams:
                freed.append(now)
        now += fixed
    return now - first_end
