"""Prompts that begin alike: token ids for all prompts of a job, from those of some of them. No torch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain as joined
from typing import overload

from penstock.schedule.prefix import chain
from penstock.schedule.types import Request

BLOCK_TOKENS = 16  # rows share whole blocks, and none has fewer tokens
_OWN = 1 << 40  # tokens from here on are of one prompt alone: no vocabulary has them
_LONGEST = 1 << 22  # of a prompt, in tokens


@dataclass(frozen=True, slots=True)
class Supposed(Sequence[int]):
    """A prompt that begins as ``head`` and goes on as no other does; number: its own, from 0."""

    head: Sequence[int]
    length: int
    number: int

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        return tuple(self)[at]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        first = _OWN + self.number * _LONGEST
        return joined(self.head, range(first, first + self.length - len(self.head)))


class Beginnings:
    """What some prompts, by their token ids, have in common with one another at their beginning."""

    def __init__(self, known: Sequence[Sequence[int]]) -> None:
        chains = [chain(Request("", ids, 1), BLOCK_TOKENS) for ids in known]
        times = Counter(digest for digests in chains for digest in digests)
        blocks = [next((n for n, one in enumerate(c) if times[one] == 1), len(c)) for c in chains]
        self._heads = [ids[: BLOCK_TOKENS * count] for ids, count in zip(known, blocks, strict=True)]
        self._tokens = sum(map(len, known))

    @property
    def part(self) -> float:
        """Of all their tokens, those that a prompt has in common with another one."""
        return sum(map(len, self._heads)) / self._tokens if self._tokens else 0.0

    def supposed(self, number: int, length: int) -> Sequence[int]:
        """Token ids of a prompt of so many tokens that is not among the known ones: it begins as they do in turn."""
        head = self._heads[number % len(self._heads)][: length - 1]
        return Supposed(head, length, number)
