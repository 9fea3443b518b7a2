"""Prompts that begin alike: which of their blocks are computed, which are on their way, and which are still wanted."""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from struct import pack

from penstock.schedule.types import Block, GroupSpec, Request, Row

_DIGEST_BYTES = 16
_TOKEN_BYTES = 8


def chain(request: Request, block_tokens: int) -> tuple[bytes, ...]:
    """Hashes of a prompt's full blocks, each of the regime and all tokens up to the block's end.

    The block with the last prompt token has none: that token is always computed, since its logits are wanted.
    """
    if request.regime is None:
        return ()
    stride = block_tokens * _TOKEN_BYTES
    end = (len(request.prompt) - 1) // block_tokens * stride
    tokens = memoryview(pack(f"{len(request.prompt)}q", *request.prompt))
    so_far = blake2b(blake2b(request.regime.encode()).digest(), digest_size=_DIGEST_BYTES)
    digests = []
    for at in range(0, end, stride):
        so_far.update(tokens[at : at + stride])
        digests.append(so_far.digest())
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
        reaches = [group.reach(block_tokens) for group in groups]
        self._endless = [group for group, reach in enumerate(reaches) if reach is None]
        self._windows = [(group, reach) for group, reach in enumerate(reaches) if reach is not None]
        self._nothing: Sequence[Block | None] = (None,) * len(groups)
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
            others = self._wanted[digest] - 1
            if others:
                self._wanted[digest] = others
                continue
            self._wanted.pop(digest)  # unlike del, not a call of Python code
            if digest in self._blocks:
                unwanted += [b for b in self._blocks[digest] if b is not None and not b.references]
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
        known: list[Sequence[Block | None]] = []
        for digest in row.chain:
            blocks = self._blocks.get(digest, self._nothing)
            if any(blocks[group] is None for group in self._endless):
                break
            known.append(blocks)
        usable = len(known)
        while (gap := self._last_gap(known, usable)) is not None:
            usable = gap
        tables = [[blocks[group] for blocks in known[:usable]] for group in range(len(self._nothing))]
        for group, reach in self._windows:
            tables[group][: max(0, usable - reach)] = [None] * max(0, usable - reach)
        return tables

    def _last_gap(self, known: Sequence[Sequence[Block | None]], end: int) -> int | None:
        """A block that is gone of those that windows reach back to from ``end``; a window of one key needs one, too.

        No prefix between it and ``end`` can be gone on from.
        """
        gaps = (
            index
            for group, reach in self._windows
            for index in range(end - 1, max(-1, end - 1 - max(reach, 1)), -1)
            if known[index][group] is None
        )
        return next(gaps, None)

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
        if row.listed == len(row.chain):
            return
        for index in range(row.listed, min(row.computed // self._block_tokens, len(row.chain))):
            digest = row.chain[index]
            known = self._blocks.setdefault(digest, list(self._nothing))
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
