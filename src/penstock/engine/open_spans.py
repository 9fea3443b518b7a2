"""What a call's spans write where full blocks are packed: newest tokens to open blocks, blocks that fill up to KV.

A query sees the keys of its own block as they are, and those of earlier blocks packed. So what it sees depends on its
position alone, not on how prompts were cut into calls, which rows share a prompt's beginning, or what was computed
again.

Shapes: T tokens of a call, S spans at equal positions, N tokens of each of them, n of these with those before them
in the same block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from penstock.engine.attention import append
from penstock.engine.call_tables import CallTables
from penstock.memory.kv_form import Arenas, PackedBlocks, Wide, packed_arenas


@dataclass(frozen=True, slots=True)
class LongSpans:
    """Spans of more than one token at the same positions.

    size: tokens of a block. tokens (S, N): their places in the call. places (S,): their rows' open blocks. filled
    (S, blocks): ids on the compute tier of the blocks that they fill, in order.
    """

    size: int
    first: int
    count: int
    tokens: torch.Tensor
    places: torch.Tensor
    filled: torch.Tensor

    @property
    def base(self) -> int:
        """The first position of the block that they begin in."""
        return self.first // self.size * self.size

    def part(self, spans: slice) -> "LongSpans":
        """Some of them."""
        return replace(self, tokens=self.tokens[spans], places=self.places[spans], filled=self.filled[spans])

    def by_block(self) -> Iterator[tuple[int, int, int]]:
        """The blocks that their queries are in: which of theirs it is, and its queries from .. to."""
        tail = self.first - self.base
        for block in range(-(-(tail + self.count) // self.size)):
            yield block, max(0, block * self.size - tail), min(self.count, (block + 1) * self.size - tail)

    def write(self, keys: torch.Tensor, values: torch.Tensor, opened: Wide, blocks: Arenas) -> Wide:
        """Write their part of new keys and values (heads, T, dim); returns it, with what was in their first block
        before, as (S, heads, n, dim)."""
        packed = packed_arenas(blocks)
        return self._written(keys, opened[0], packed[0]), self._written(values, opened[1], packed[1])

    def _written(self, new: torch.Tensor, opened: torch.Tensor, blocks: PackedBlocks) -> torch.Tensor:
        tail = self.first - self.base
        wide = opened.new_empty((len(self.places), opened.shape[1], tail + self.count, opened.shape[3]))
        wide[:, :, :tail] = opened[self.places, :, :tail]
        wide[:, :, tail:] = new[:, self.tokens].transpose(0, 1)
        full = self.filled.shape[1] * self.size
        if full:
            cut = torch.unflatten(wide[:, :, :full], 2, (-1, self.size)).transpose(1, 2).flatten(0, 1)
            blocks.pack(self.filled.flatten(), cut)
        if rest := tail + self.count - full:
            opened[self.places, :, :rest] = wide[:, :, full:]
        return wide


@dataclass(slots=True, eq=False)
class OpenSpans:
    """A call's spans. newest, earlier: tables of the call over open blocks, for spans of one token, and over packed
    ones of the compute tier.

    ones: places of these tokens in the call, None where there are no others; writes: where among the open blocks they
    go. full_places, full_ids: of the blocks that they fill. wide: by layer, the long spans' own keys and values.
    """

    newest: CallTables
    earlier: CallTables
    ones: torch.Tensor | None
    writes: CallTables
    full_places: torch.Tensor
    full_ids: torch.Tensor
    longs: tuple[LongSpans, ...]
    wide: dict[int, list[Wide]] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        size: int,
        spans: Sequence[tuple[int, int]],
        samples: Sequence[bool],
        places: Sequence[int],
        own: Sequence[Sequence[int]],
        device: torch.device,
    ) -> "OpenSpans":
        """Of spans ``(first, count)`` over blocks of ``size`` tokens. places: their rows' open blocks. own: their rows'
        packed blocks on the compute tier; -1: not there. samples: which end with a drawn token. One token of a prompt
        that goes on in the next call counts as a long span: that call may write to the open block before all layers of
        this one have read it.

        Raises ValueError where a block that becomes full is not on the compute tier.
        """

        def indices(values: Sequence[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        index = [first // size for first, _ in spans]
        single = [i for i, (_, count) in enumerate(spans) if count == 1 and samples[i]]
        full = [i for i in single if spans[i][0] % size == size - 1]
        opened: list[list[int]] = [[] for _ in spans]
        for i in single:
            opened[i] = [-1] * index[i] + [places[i]]
        if any(
            own[i][b] < 0 for i, (first, count) in enumerate(spans) for b in range(index[i], (first + count) // size)
        ):
            raise ValueError("a block that new keys fill is not here")
        starts = [0]
        alike: dict[tuple[int, int], list[int]] = {}
        for i, (first, count) in enumerate(spans):
            starts.append(starts[-1] + count)
            if not (count == 1 and samples[i]):
                alike.setdefault((first, count), []).append(i)
        longs = [
            LongSpans(
                size,
                first,
                count,
                indices([starts[i] for i in members])[:, None] + torch.arange(count, device=device),
                indices([places[i] for i in members]),
                torch.stack([indices(own[i][first // size : (first + count) // size]) for i in members]),
            )
            for (first, count), members in alike.items()
        ]
        before = [list(table[:blocks]) for table, blocks in zip(own, index, strict=True)]
        newest, ones = CallTables.build(spans, opened, size, device), indices([starts[i] for i in single])
        return cls(
            newest,
            CallTables.build(spans, before, size, device),
            ones if longs else None,
            newest.writes_of(ones) if longs else newest,
            indices([places[i] for i in full]),
            indices([own[i][index[i]] for i in full]),
            tuple(longs),
        )

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor, opened: Wide, blocks: Arenas) -> None:
        """Write the call's new keys and values (heads, T, dim) of a layer, and pack what is full.

        opened: the layer's open blocks. blocks: its packed ones on the compute tier.
        """
        self.wide[layer] = [long.write(keys, values, opened, blocks) for long in self.longs]
        if self.writes.tokens:
            chosen = (keys, values) if self.ones is None else (keys[:, self.ones], values[:, self.ones])
            append(*chosen, *opened, self.writes)
        if len(self.full_places):
            for arena, wide in zip(packed_arenas(blocks), opened, strict=True):
                arena.pack(self.full_ids, wide[self.full_places])
