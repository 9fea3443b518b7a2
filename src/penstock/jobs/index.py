"""A map from digests to numbers in little memory."""

from array import array
from struct import Struct

KEY_BYTES = 16
_FIRST_SLOTS = 1 << 10
_halves = Struct("<QQ").unpack


class Index:
    """16-byte digests to whole numbers of 1 to 2^64 - 1; nothing is ever taken out. expected: entries with room now.

    Open addressing in three flat arrays: 36 to 72 bytes an entry, where a dict of bytes takes 150 and more. Digests are
    spread evenly already, so their first bytes choose the slot.
    """

    def __init__(self, expected: int = 0) -> None:
        self._count = 0
        slots = _FIRST_SLOTS
        while _is_full(expected, slots):
            slots *= 2
        self._allocate(slots)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return 3 * 8 * len(self._values)

    def get(self, key: bytes) -> int:
        """The number kept under a key, or 0."""
        first, second = _halves(key)
        return self._values[self._slot(first, second)]

    def add(self, key: bytes, value: int) -> bool:
        """Keep a number under a key that has none yet; False, and nothing is changed, where it has one."""
        first, second = _halves(key)
        slot = self._slot(first, second)
        if self._values[slot]:
            return False
        self._firsts[slot], self._seconds[slot], self._values[slot] = first, second, value
        self._count += 1
        if _is_full(self._count, len(self._values)):
            self._grow()
        return True

    def _slot(self, first: int, second: int) -> int:
        """Where the key of two halves is, or where it belongs."""
        values, firsts, seconds, last = self._values, self._firsts, self._seconds, self._last
        slot = first & last
        while values[slot] and (firsts[slot] != first or seconds[slot] != second):
            slot = (slot + 1) & last
        return slot

    def _allocate(self, slots: int) -> None:
        self._firsts, self._seconds, self._values = (array("Q", bytes(8 * slots)) for _ in range(3))
        self._last = slots - 1

    def _grow(self) -> None:
        entries = zip(self._firsts, self._seconds, self._values, strict=True)
        self._allocate(2 * len(self._values))
        firsts, seconds, values = self._firsts, self._seconds, self._values
        for first, second, value in entries:
            if value:
                slot = self._slot(first, second)
                firsts[slot], seconds[slot], values[slot] = first, second, value


def _is_full(entries: int, slots: int) -> bool:
    """Whether so many entries would make searches long."""
    return 3 * entries > 2 * slots
