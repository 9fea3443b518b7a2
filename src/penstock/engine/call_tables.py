"""Where the keys and values of a call's spans lie in blocks: worked out once per call, for all layers of a group.

Shapes: T tokens of the call, S spans computed together, R spans of one token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class SpanGroup:
    """Spans of more than one token with the same positions and the same blocks present, computed as one batch.

    tokens (S, count): their places in the call. blocks (S, n): ids of the blocks present. indices: which blocks of
    their rows these are, ascending. start: the first of the tokens if all of them adjoin in the call, else None.
    """

    first: int
    count: int
    tokens: torch.Tensor
    blocks: torch.Tensor
    indices: tuple[int, ...]
    start: int | None = None

    def parts(self, spans: int) -> Iterator["SpanGroup"]:
        """The same in batches of at most ``spans`` spans."""
        for at in range(0, len(self.tokens), spans):
            these = slice(at, at + spans)
            start = None if self.start is None else self.start + at * self.count
            yield replace(self, tokens=self.tokens[these], blocks=self.blocks[these], start=start)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """These tokens' part of x (T, …) as (S, count, …): a view where they adjoin."""
        if self.start is None:
            return x[self.tokens]
        return x[self.start : self.start + self.tokens.numel()].reshape(*self.tokens.shape, *x.shape[1:])

    def put(self, x: torch.Tensor, values: torch.Tensor | float) -> None:
        """Set these tokens' part of x (T, …) to values (S, count, …)."""
        if self.start is None:
            x[self.tokens] = torch.as_tensor(values, dtype=x.dtype, device=x.device)
        else:
            self.take(x).copy_(torch.as_tensor(values, device=x.device))


@dataclass(frozen=True, slots=True)
class CallTables:
    """Where a call's keys and values lie, for all layers of one group.

    holds: whether any block is here. write_blocks, write_offsets (T,): block and place in it of each token's new key,
    block -1 where it is not at hand. decode_tokens (R,): places in the call of the spans of one token; decode_lengths
    (R,): their keys, own included; decode_table (R, width) int32: their blocks, -1 where one is absent; decode_present
    (R, most): which of the table's are here, in order, then -1. groups: the longer spans.
    """

    tokens: int
    block_tokens: int
    holds: bool
    write_blocks: torch.Tensor
    write_offsets: torch.Tensor
    writable: bool
    decode_tokens: torch.Tensor
    decode_lengths: torch.Tensor
    decode_table: torch.Tensor
    decode_present: torch.Tensor
    groups: tuple[SpanGroup, ...]

    @classmethod
    def build(
        cls,
        spans: Sequence[tuple[int, int]],
        tables: Sequence[Sequence[int]],
        block_tokens: int,
        device: torch.device | str = "cpu",
    ) -> "CallTables":
        """Tables of a call whose span i is ``(first, count)`` of a row with the blocks ``tables[i]``.

        Id -1 marks a block that is not here (left behind by a window, or held elsewhere): its keys take no part.
        """
        firsts, counts = (np.array([span[which] for span in spans], np.int64) for which in (0, 1))
        starts = np.cumsum([0, *counts])
        span_of = np.repeat(np.arange(len(spans)), counts)
        positions = np.arange(starts[-1]) - (starts[:-1] - firsts)[span_of]
        needed = (firsts + counts - 1) // block_tokens + 1
        held = np.array([len(table) for table in tables], np.int64)
        padded = np.full((len(spans), max(needed.max(initial=0), held.max(initial=0))), -1, np.int64)
        indices = np.arange(padded.shape[1])
        padded[indices < held[:, None]] = np.fromiter(chain.from_iterable(tables), np.int64, int(held.sum()))
        padded[indices >= needed[:, None]] = -1
        write_blocks = padded[span_of, positions // block_tokens]

        decode = np.flatnonzero(counts == 1)
        decode_table = padded[decode, : needed[decode].max(initial=0)].astype(np.int32)
        rows, columns = np.nonzero(decode_table >= 0)
        here = np.bincount(rows, minlength=len(decode))
        present = np.full((len(decode), here.max(initial=0)), -1, np.int64)
        present[rows, np.arange(len(rows)) - np.repeat(np.cumsum(here) - here, here)] = columns
        alike: dict[tuple[int, int, bytes], list[int]] = {}
        for i in np.flatnonzero(counts > 1).tolist():
            alike.setdefault((*spans[i], (padded[i] >= 0).tobytes()), []).append(i)

        def placed(array: np.ndarray[tuple[int, ...], np.dtype[np.integer]]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        def grouped(first: int, count: int, members: list[int]) -> SpanGroup:
            present = np.flatnonzero(padded[members[0]] >= 0)
            begins = starts[members]
            adjoining = bool((np.diff(begins) == count).all())
            tokens = begins[:, None] + np.arange(count)
            blocks = placed(padded[members][:, present])
            return SpanGroup(
                first, count, placed(tokens), blocks, tuple(present.tolist()), int(begins[0]) if adjoining else None
            )

        groups = tuple(grouped(first, count, members) for (first, count, _), members in alike.items())
        return cls(
            len(positions),
            block_tokens,
            bool((padded >= 0).any()),
            placed(write_blocks),
            placed(positions % block_tokens),
            bool((write_blocks >= 0).all()),
            placed(starts[decode]),
            placed(firsts[decode] + 1),
            placed(decode_table),
            placed(present),
            groups,
        )

    def writes_of(self, tokens: torch.Tensor) -> "CallTables":
        """The same where these tokens (n,) alone are written, whose blocks are here."""
        blocks, offsets = self.write_blocks[tokens], self.write_offsets[tokens]
        return replace(self, tokens=len(tokens), write_blocks=blocks, write_offsets=offsets, writable=True)
