"""The threads that a kernel's work is cut among."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

PARTS = 8  # of a product for each thread, to be taken in turn
PART_BYTES = 1 << 20  # of weights, read or written: for less a thread takes longer to wake than the work


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    """Threads beside the calling one, which takes a part too."""
    return ThreadPoolExecutor(number, "penstock-kernel")


def in_threads(work: Callable[[int, int], None], cuts: Sequence[int]) -> None:
    """Do ``work(start, stop)`` between all neighbouring ``cuts``, one part per thread; work releases the GIL."""
    first, *rest = pairwise(cuts)
    others = [_threads(len(rest)).submit(work, *part) for part in rest]
    try:
        work(*first)
    finally:  # nobody writes any more when this call is over, be it by Ctrl-C
        for other in others:
            other.result()


def in_turn(work: Callable[[int, int, int], None], cuts: Sequence[int], threads: int) -> None:
    """Do ``work(thread, start, stop)`` between all neighbouring ``cuts``; work releases the GIL.

    Each thread takes the next part when it has done one: a core that the disk or somebody else needs for a while then
    holds up the others by a part at most, not by all that it lost.
    """
    left = deque(pairwise(cuts))

    def take(thread: int) -> None:
        while left:
            try:
                part = left.popleft()
            except IndexError:  # another thread was faster
                return
            work(thread, *part)

    others = [_threads(threads - 1).submit(take, thread) for thread in range(1, threads)]
    try:
        take(0)
    finally:  # as above; what is left after an error is not begun
        left.clear()
        for other in others:
            other.result()
