"""Prompts that begin alike: which of their blocks are computed, which are on their way, and which are still wanted."""

from array import array
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

from penstock.schedule.types import Block, GroupSpec, Request, Row

_DIGEST_BYTES = 16


def chain(request: Request, block_tokens: int) -> tuple[bytes, ...]:
    """Hashes of a prompt's full blocks, each of the regime and all tokens up to the block's end.

    The block with the last prompt token has none: that token is always computed, since its logits are wanted.
    """
    if request.regime is None:
        return ()
    ids = array("q", request.prompt)
    stride = block_tokens * ids.itemsize
    blocks = (len(ids) - 1) // block_tokens
    data = ids.tobytes()
    digest = blake2b(request.regime.encode(), digest_size=_DIGEST_BYTES).digest()
    digests = []
    for at in range(0, blocks * stride, stride):
        digest = blake2b(digest + data[at : at + stride], digest_size=_DIGEST_BYTES).digest()
        digests.append(digest)
    return tuple(digests)


class PrefixIndex:
    """Computed prompt blocks by hash, how many rows want each before they begin, and who is about to compute it.

    In it are full blocks of prompts alone, and only once they are computed. New tokens always go to a block of their
    row's own, so that nothing shared is ever written to: copy on write never has to copy.

    A row that begins owns the hashes of its chain that are not here, until they are; newer rows with the same ones wait
    for it. The oldest row waits for nobody, and memory always holds its next tokens; so somebody always goes on.
    """

    def __init__(self, groups: Sequence[GroupSpec], block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._reach = [group.reach(block_tokens) for group in groups]
        self._blocks: dict[bytes, list[Block | None]] = {}
        self._wanted: Counter[bytes] = Counter()
        self._owners: dict[bytes, Row] = {}

    def want(self, row: Row) -> None:
        """Count a row that is to begin."""
        self._wanted.update(row.chain)

    def unwant(self, row: Row) -> list[Block]:
        """Count a row no longer; returns the blocks without references that nobody wants any more."""
        unwanted: list[Block] = []
        for digest in row.chain:
            self._wanted[digest] -= 1
            if not self._wanted[digest]:
                del self._wanted[digest]
                unwanted += [b for b in self._blocks.get(digest, ()) if b is not None and not b.references]
        return unwanted

    def wanted(self, block: Block) -> bool:
        """Whether a row that is to begin has this block in its prompt."""
        return block.digest is not None and self._wanted[block.digest] > 0

    def parting(self, row: Row, index: int, reach: int) -> bool:
        """Whether a wanted prompt parts from this row's while a window of that reach still holds block ``index``.

        Prompts that go on alike for longer are taken over from where the window has left the block behind.
        """
        further = row.chain[index + reach] if index + reach < len(row.chain) else b""
        return index < len(row.chain) and self._wanted[row.chain[index]] > self._wanted[further]

    def longest(self, row: Row) -> list[list[Block | None]]:
        """Tables, one per group, of the longest prefix of a row's prompt that it could go on from.

        Endless groups have all its blocks, groups with a window those that it reaches back to, and None before.
        """
        found: list[list[Block | None]] = [[] for _ in self._reach]
        usable = 0
        present = [0] * len(found)  # blocks without a gap, up to the one looked at
        for count, digest in enumerate(row.chain, 1):
            blocks = self._blocks.get(digest) or [None] * len(found)
            for group, block in enumerate(blocks):
                found[group].append(block)
                present[group] = present[group] + 1 if block is not None else 0
            if any(reach is None and run < count for reach, run in zip(self._reach, present, strict=True)):
                break
            if all(reach is None or run >= min(reach, count) for reach, run in zip(self._reach, present, strict=True)):
                usable = count
        for table, reach in zip(found, self._reach, strict=True):
            del table[usable:]
            left_behind = 0 if reach is None else max(0, usable - reach)
            table[:left_behind] = [None] * left_behind
        return found

    def awaited(self, row: Row, known: int) -> bytes | None:
        """The last hash that the owner of the one at index ``known`` computes; None where no older row owns that."""
        owner = self._older_owner(row, row.chain[known]) if known < len(row.chain) else None
        if owner is None:
            return None
        return next(digest for digest in reversed(row.chain) if self._owners.get(digest) is owner)

    def waits(self, row: Row) -> bool:
        """Whether an older row still is to compute what a row awaits."""
        return row.awaits is not None and self._older_owner(row, row.awaits) is not None

    def _older_owner(self, row: Row, digest: bytes) -> Row | None:
        owner = self._owners.get(digest)
        return owner if owner is not None and owner.turn < row.turn else None

    def own(self, row: Row) -> None:
        """Let a row that begins own what it is the first to compute."""
        for digest in row.chain[row.listed :]:
            self._owners.setdefault(digest, row)

    def disown(self, row: Row) -> None:
        """Take from a row what it owns and has not computed."""
        for digest in row.chain[row.listed :]:
            if self._owners.get(digest) is row:
                del self._owners[digest]

    def register(self, row: Row) -> None:
        """Enter the prompt blocks that a row has completed since the last time, where there are none yet."""
        for index in range(row.listed, min(row.computed // self._block_tokens, len(row.chain))):
            digest = row.chain[index]
            known = self._blocks.setdefault(digest, [None] * len(row.tables))
            for group, table in enumerate(row.tables):
                block = table[index]
                if known[group] is None and block is not None:
                    known[group] = block
                    block.digest = digest
            if self._owners.get(digest) is row:
                del self._owners[digest]
            row.listed = index + 1

    def forget(self, block: Block) -> None:
        """Strike out a block whose bytes are given away."""
        if block.digest is None:
            return
        known = self._blocks[block.digest]
        known[block.group] = None
        if not any(known):
            del self._blocks[block.digest]
        block.digest = None
