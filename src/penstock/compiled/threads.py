"""The threads that a kernel's work is cut among."""

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count, pairwise
from typing import Any

PARTS = 8  # of a product for each thread, to be taken in turn
PART_BYTES = 1 << 20  # of weights, read or written: for less a thread takes longer to wake than the work

_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _team() -> Any:
    """What hands a task to the threads that torch computes with, where these are OpenMP's; else None.

    Others of ours would share the cores with them: they go on for a while after a product, looking for the next one.
    """
    try:
        fork = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError):
        return None
    fork.argtypes, fork.restype = (_Task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return fork


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    """Threads beside the calling one, which takes a part too."""
    return ThreadPoolExecutor(number, "penstock-kernel")


def in_threads(work: Callable[[int, int], None], cuts: Sequence[int]) -> None:
    """Do ``work(start, stop)`` between all neighbouring ``cuts``, each in a thread; work releases the GIL."""
    in_turn(lambda _, start, stop: work(start, stop), cuts, len(cuts) - 1)


def in_turn(work: Callable[[int, int, int], None], cuts: Sequence[int], threads: int) -> None:
    """Do ``work(thread, start, stop)`` between all neighbouring ``cuts``; work releases the GIL.

    Each thread takes the next part when it has done one: a core that the disk or somebody else needs for a while then
    holds up the others by a part at most, not by all that it lost.
    """
    left = deque(pairwise(cuts))
    if threads < 2:
        for part in left:
            work(0, *part)
        return
    numbers, failed = count(), list[BaseException]()

    def take(_: object = None) -> None:
        thread = next(numbers)
        try:
            while left:
                work(thread, *left.popleft())
        except IndexError:  # another thread was faster
            return
        except BaseException as error:  # not to be lost: whoever calls this is not Python
            left.clear()
            failed.append(error)

    if (fork := _team()) is not None:
        fork(_Task(take), None, threads, 0)
    else:
        others = [_threads(threads - 1).submit(take) for _ in range(1, threads)]
        take()
        for other in others:
            other.result()
    if failed:
        raise failed[0]
