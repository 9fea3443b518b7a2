"""Telling the C library to give memory back, so that a budget counts what is in use and not what once was."""

import ctypes
import sys

_MMAP_THRESHOLD, _ARENA_MAX, _TRIM_THRESHOLD = -3, -8, -1  # glibc's malloc.h
_MAPPED_BYTES = 16 << 20


def give_back_at_once() -> None:
    """Map every allocation of 1 MiB or more by itself, so that freeing it returns its memory.

    glibc raises that limit to 32 MiB by itself, and freed activations then stay in its heap. Nothing happens where the
    C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
    mallopt(_TRIM_THRESHOLD, _MAPPED_BYTES)
    mallopt(_ARENA_MAX, 2)
