"""Where a micro-batch's keys and values lie, and which of them are attended to together."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from penstock.engine.attention import append
from penstock.engine.call import flat_index
from penstock.engine.call_tables import CallTables
from penstock.engine.open_spans import OpenSpans
from penstock.memory.kv import KVStore
from penstock.memory.kv_form import Arenas, Wide, wide_arenas
from penstock.plan.policy import Tier
from penstock.schedule.types import Block, Row, Span

if TYPE_CHECKING:
    from penstock.engine.beside import Beside
    from penstock.engine.host import Host
    from penstock.engine.staging import Stager


@dataclass(frozen=True, slots=True)
class Reach:
    """How attention reaches blocks that are not on the compute tier.

    stager: brings them to where they are attended to. beside: attends to those on the cpu beside a gpu, where the
    stager brings those on disk then. host: the cpu beside a gpu where it has all KV, and attends to it.
    """

    stager: "Stager | None" = None
    beside: "Beside | None" = None
    host: "Host | None" = None

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Those below the compute tier whose blocks are attended to where they lie."""
        return () if self.beside is None else ("cpu",)

    def settle(self) -> None:
        """Leave nothing under way beside the compute device."""
        for one in (self.beside, self.host):
            if one is not None:
                one.settle()

    def close(self) -> None:
        """End what works beside the compute device."""
        for one in (self.beside, self.host):
            if one is not None:
                one.close()


@dataclass(slots=True, eq=False)
class Portion:
    """Spans with those of their blocks that are attended to together.

    chosen: their indices in the batch. tokens: their flat positions, on the compute device and on the host. ids: per
    span, its blocks' places in the arena that they are attended in (-1: elsewhere, or left behind). tables: made of
    these, where they are attended to. blocks: None where that is the arena of ``tier``; otherwise the blocks to bring
    to a staging buffer, in the order that ``ids`` counts them.
    """

    chosen: tuple[int, ...]
    tokens: torch.Tensor
    tokens_host: torch.Tensor
    ids: list[list[int]]
    tables: CallTables
    store: KVStore
    tier: Tier
    blocks: tuple[Block, ...] | None = None
    stager: "Stager | None" = None

    def mine(self, x: torch.Tensor) -> torch.Tensor:
        """The portion's part of x (T, …) of the call."""
        return x[self.tokens_host if x.device.type == "cpu" else self.tokens]

    @contextmanager
    def arenas(self, layer: int) -> Iterator[Arenas]:
        """The layer's key and value blocks where they are attended to, for as long as the context lasts."""
        if self.blocks is None or self.stager is None:
            yield self.store.arenas(layer, self.tier)
            return
        with self.stager.staged(layer, self) as staging:
            yield self.store.staged_views(layer, staging, len(self.blocks))


class KVBatch:
    """One micro-batch's tables, for every KV group; built once per call and used by all its layers.

    What lies where new keys are written (the compute tier, or the cpu that computes layers beside it) is attended to
    there by all spans, for their newest blocks always are; what lies elsewhere is attended to in portions, and merged.
    """

    def __init__(
        self, store: KVStore, spans: Sequence[Span], starts: Sequence[int], rows: Sequence[Row], reach: Reach
    ) -> None:
        self.store, self.spans, self.starts, self.rows, self.reach = store, spans, starts, rows, reach
        self._tier = store.tier
        self._here = [self._tables_here(group) for group in range(len(store.groups))]
        self._away = [list(self._portions(group)) for group in range(len(store.groups))]
        self._handles: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._newest_dense: list[int] | None = None

    def _ids(self, chosen: Sequence[int], group: int, tier: Tier) -> list[list[int]]:
        """Block ids in a tier's arena; blocks elsewhere or left behind by a window count as absent."""
        return [[b.id if b is not None and b.tier == tier else -1 for b in self.rows[i].tables[group]] for i in chosen]

    def _cut(self, chosen: Sequence[int]) -> list[tuple[int, int]]:
        return [(self.spans[i].first, self.spans[i].count) for i in chosen]

    def _tables_here(self, group: int) -> CallTables | OpenSpans:
        everyone, size, device = range(len(self.spans)), self.store.block_tokens, self.store.torch_device
        spans, ids = self._cut(everyone), self._ids(everyone, group, self._tier)
        if self.store.open is None:
            return CallTables.build(spans, ids, size, device)
        places = [self.store.open.place(row.id) for row in self.rows]
        return OpenSpans.build(size, spans, [span.samples for span in self.spans], places, ids, device)

    def _portions(self, group: int) -> Iterator[Portion]:
        """One for each other tier that is attended to in place, and as many as staging room demands for what is not."""
        for tier in self.reach.tiers:
            if chosen := [i for i in range(len(self.spans)) if any(b.tier == tier for b in self._held(i, group))]:
                yield self._portion(chosen, self._ids(chosen, group, tier), tier)
        away = [i for i in range(len(self.spans)) if self._coming(i, group)]
        if not away:
            return
        if self.reach.stager is None:
            raise RuntimeError("rows rest on another tier and nothing was set up to bring them")
        for chosen in self.reach.stager.grouped(away, lambda i: self._coming(i, group), group):
            yield self._staged(chosen, group)

    def _held(self, index: int, group: int) -> list[Block]:
        return [b for b in self.rows[index].tables[group] if b is not None]

    def _coming(self, index: int, group: int) -> list[Block]:
        """The blocks of a span's row that have to be brought to where they are attended to."""
        return [b for b in self._held(index, group) if b.tier != self._tier and b.tier not in self.reach.tiers]

    def _staged(self, chosen: Sequence[int], group: int) -> Portion:
        blocks: list[Block] = []
        ids: list[list[int]] = []
        for i in chosen:
            coming = self._coming(i, group)
            places = {id(block): len(blocks) + at for at, block in enumerate(coming)}
            ids.append([places.get(id(block), -1) for block in self.rows[i].tables[group]])
            blocks += coming
        return self._portion(chosen, ids, self._tier, tuple(blocks))

    def _portion(
        self, chosen: Sequence[int], ids: list[list[int]], tier: Tier, blocks: tuple[Block, ...] | None = None
    ) -> Portion:
        device = self.store.torch_device
        where = device if self.reach.beside is None else "cpu"
        tables = CallTables.build(self._cut(chosen), ids, self.store.block_tokens, where)
        tokens = flat_index(self.spans, self.starts, chosen)
        stager = None if blocks is None else self.reach.stager
        return Portion(tuple(chosen), tokens.to(device), tokens, ids, tables, self.store, tier, blocks, stager)

    def here(self, layer: int) -> CallTables | OpenSpans:
        """What lies where new keys are written, of the whole call; with packed blocks, also what its spans write."""
        return self._here[self.store.group_of(layer)]

    def away(self, layer: int) -> list[Portion]:
        """What lies elsewhere, portion by portion."""
        return self._away[self.store.group_of(layer)]

    def append(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        """Write the call's new keys and values, (1, heads, T, dim) each, to their rows' blocks."""
        here, arenas = self.here(layer), self.store.arenas(layer)
        if isinstance(here, CallTables):
            append(keys[0], values[0], *wide_arenas(arenas), here)
        else:
            here.write(layer, keys[0], values[0], self.store.opened(layer), arenas)

    def remember(self, keys: torch.Tensor, layer: int) -> None:
        """Know these keys again when attention is called with them, without keeping them alive."""
        self._handles[id(keys)] = weakref.ref(keys, lambda _: self._let_go(layer)), layer

    def _let_go(self, layer: int) -> None:
        """Nobody attends to a layer's new keys any more."""
        here = self.here(layer)
        if isinstance(here, OpenSpans):
            here.wide.pop(layer, None)

    def layer_of(self, keys: torch.Tensor) -> int | None:
        """The layer whose ``update`` returned these keys; None where they are dense (``dense_lengths`` says whose)."""
        known = self._handles.get(id(keys))
        return known[1] if known is not None and known[0]() is keys else None

    def gather(self, layer: int, dtype: torch.dtype) -> Wide:
        """All keys and values of the batch's rows, one after another: (1, heads, sum of lengths, dim) each."""
        parts = self.joined(layer)
        keys, values = (torch.cat([part[which] for part in parts], 1)[None].to(dtype) for which in (0, 1))
        self._newest_dense = [part[0].shape[1] for part in parts]
        return keys, values

    def joined(self, layer: int) -> list[Wide]:
        """Each row's keys and values (heads, tokens, dim) where new ones are written, wherever they lie; those that a
        window left behind are missing in front."""
        everyone, group = range(len(self.spans)), self.store.group_of(layer)
        found = [_Gathered(self.store.torch_device) for _ in everyone]
        here = wide_arenas(self.store.arenas(layer))
        for one, ids in zip(found, self._ids(everyone, group, self._tier), strict=True):
            one.add(ids, here)
        for portion in self.away(layer):
            with portion.arenas(layer) as arenas:
                for i, ids in zip(portion.chosen, portion.ids, strict=True):
                    found[i].add(ids, wide_arenas(arenas))
        ends = [span.first + span.count for span in self.spans]
        return [one.joined(end, self.store.block_tokens) for one, end in zip(found, ends, strict=True)]

    def dense_lengths(self, keys: torch.Tensor) -> list[int]:
        """How many of the dense keys belong to each span; RuntimeError where they are of unknown origin."""
        if self._newest_dense is None or keys.shape[2] != sum(self._newest_dense):
            raise RuntimeError("attention got keys that no cache layer of this call returned")
        return self._newest_dense


class _Gathered:
    """Blocks of one row, from wherever they lie."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._at: list[int] = []
        self._parts: list[Wide] = []

    def add(self, ids: Sequence[int], arenas: Wide) -> None:
        """Take the blocks of a table that are in an arena (-1: they are not)."""
        keys, values = arenas
        here = [at for at, block in enumerate(ids) if block >= 0]
        chosen = torch.tensor([ids[at] for at in here], dtype=torch.long, device=keys.device)
        self._at += here
        self._parts.append((keys[chosen].to(self._device), values[chosen].to(self._device)))

    def joined(self, end: int, block_tokens: int) -> Wide:
        """Keys and values (heads, tokens, dim) up to position ``end``; a window leaves blocks behind in front."""
        order = sorted(range(len(self._at)), key=lambda n: self._at[n])
        end -= self._at[order[0]] * block_tokens
        keys, values = (self._in_order([part[which] for part in self._parts], order) for which in (0, 1))
        return keys[:, :end], values[:, :end]

    def _in_order(self, parts: Sequence[torch.Tensor], order: Sequence[int]) -> torch.Tensor:
        blocks = torch.cat(list(parts))
        if list(order) != list(range(len(order))):
            blocks = blocks[torch.tensor(order, dtype=torch.long, device=blocks.device)]
        return blocks.transpose(0, 1).flatten(1, 2)
