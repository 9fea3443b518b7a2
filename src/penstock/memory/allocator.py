"""Telling libraries to give memory back, so that a budget counts what is in use and not what once was."""

import ctypes
import os
import sys
import time
from collections.abc import Callable

from penstock.machine.limits import resident_bytes

_MMAP_THRESHOLD, _ARENA_MAX, _TRIM_THRESHOLD = -3, -8, -1  # glibc's malloc.h
_MAPPED_BYTES = 9 << 20
_KEPT_BYTES = 256 << 20  # free at the end of the heap; near its budget a process keeps none (HeapWatch)
_PRODUCTS = "32"  # shapes of products that are kept ready: a sweep has about a dozen
_STEP_BYTES = 16 << 20  # that a heap grows by before it is tried again
_PAUSE_S = 0.003  # between two looks: a page of one row takes a third of that, and a look a fiftieth


def keep_little() -> None:
    """Have the C library and torch's products hold on to little that is not in use, from now on."""
    _give_back_at_once()
    _remember_few_products()


def _remember_few_products() -> None:
    """Keep few shapes of products ready.

    oneDNN and torch's layer over it each keep 1,024, of 0.3 MiB and more: a product in bfloat16 of as many different
    numbers of tokens as experts or ragged prompts bring takes 300 MiB and more. To prepare one again is lost in noise.
    They read these variables at their first product; a user's own values stand.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _PRODUCTS)


def _give_back_at_once() -> None:
    """Map every allocation of 9 MiB or more by itself, so that freeing it returns its memory.

    glibc would raise that limit to 32 MiB as it goes, and what large activations leave in its heap is not given back:
    at 16 MiB a run outgrows what it counts. Mapped memory is handed out page fault by page fault: at 1 MiB a decode
    sweep of 256 rows takes 17 % longer. For the same reason the heap's end is kept while there is room: trimmed at
    9 MiB it went and came back within every layer, up to 74,000 page faults and 0.3 s of the 1.4 s of a sweep of 1,024
    tokens (135M). Nothing happens where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_ARENA_MAX, 2)


class HeapWatch:
    """Gives what the C library's heap has free back to the system when this process nears its budget.

    glibc before 2.38 does not find a free piece again for an aligned tensor of the same size, so that activations of
    70 MB spread over a heap of 600 (28 layers, four calls of 256 tokens in turn). Pages that are free are given back
    then, and taken anew when they are written: only a process that comes near its budget pays for that.

    above_bytes: resident memory from which on that is done; None: never.
    """

    def __init__(self, above_bytes: int | None) -> None:
        self._above_bytes = self._next_bytes = above_bytes
        self._trim = _malloc_trim()
        self._again = 0.0  # the time from which on it looks

    def look(self) -> None:
        """Give memory back if there is too much of it, at most every few milliseconds."""
        now = time.monotonic()
        if self._next_bytes is None or self._trim is None or now < self._again:
            return
        self._again = now + _PAUSE_S
        if resident_bytes() <= self._next_bytes:
            return
        self._trim(0)
        # what is in use is not given back: no trying again and again
        self._next_bytes = max(self._above_bytes or 0, resident_bytes() + _STEP_BYTES)


def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
