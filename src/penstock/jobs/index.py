"""A map from digests to numbers in little memory."""

from array import array

KEY_BYTES = 16
_FIRST_SLOTS = 1 << 10


class Index:
    """16-byte digests to whole numbers of 1 to 2^64 - 1; nothing is ever taken out.

    Open addressing in two flat arrays: 36 to 72 bytes an entry, where a dict of bytes takes 150 and more. Digests are
    spread evenly already, so their first bytes choose the slot.
    """

    def __init__(self) -> None:
        self._count = 0
        self._allocate(_FIRST_SLOTS)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return len(self._keys) + 8 * len(self._values)

    def get(self, key: bytes) -> int:
        """The number kept under a key, or 0."""
        return self._values[self._slot(key)]

    def add(self, key: bytes, value: int) -> bool:
        """Keep a number under a key that has none yet; False, and nothing is changed, where it has one."""
        slot = self._slot(key)
        if self._values[slot]:
            return False
        self._put(slot, key, value)
        self._count += 1
        if 3 * self._count > 2 * len(self._values):
            self._grow()
        return True

    def _slot(self, key: bytes) -> int:
        """Where the key is, or where it belongs."""
        keys, values, last = self._keys, self._values, len(self._values) - 1
        slot = int.from_bytes(key[:8], "little") & last
        while values[slot] and keys[slot * KEY_BYTES : (slot + 1) * KEY_BYTES] != key:
            slot = (slot + 1) & last
        return slot

    def _put(self, slot: int, key: bytes, value: int) -> None:
        self._keys[slot * KEY_BYTES : (slot + 1) * KEY_BYTES] = key
        self._values[slot] = value

    def _allocate(self, slots: int) -> None:
        self._keys = bytearray(KEY_BYTES * slots)
        self._values = array("Q", bytes(8 * slots))

    def _grow(self) -> None:
        keys, values = self._keys, self._values
        self._allocate(2 * len(values))
        for slot, value in enumerate(values):
            if value:
                key = bytes(keys[slot * KEY_BYTES : (slot + 1) * KEY_BYTES])
                self._put(self._slot(key), key, value)
