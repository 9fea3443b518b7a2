"""Where a micro-batch's keys and values lie: on the compute tier, or brought there portion by portion."""

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
from penstock.schedule.types import Block, Row, Span

if TYPE_CHECKING:
    from penstock.engine.staging import Stager


@dataclass(slots=True, eq=False)
class Portion:
    """Spans whose keys and values are attended together.

    chosen: their indices in the batch. tokens: their flat positions, None for the whole batch. ids: per span, its
    blocks' places in the arena that they are attended in (-1: left behind). blocks: None where that is the compute
    tier's arena; otherwise the blocks to bring to a staging buffer, in the order that ``ids`` counts them. open: where
    full blocks are packed, what the spans write.
    """

    chosen: tuple[int, ...]
    tokens: torch.Tensor | None
    ids: list[list[int]]
    tables: CallTables
    store: KVStore
    blocks: tuple[Block, ...] | None = None
    stager: "Stager | None" = None
    open: OpenSpans | None = None

    def mine(self, x: torch.Tensor) -> torch.Tensor:
        """The portion's part of x (T, …) of the call."""
        return x if self.tokens is None else x[self.tokens.to(x.device)]

    @contextmanager
    def arenas(self, layer: int) -> Iterator[Arenas]:
        """The layer's key and value blocks on the compute device, for as long as the context lasts."""
        if self.blocks is None:
            yield self.store.arenas(layer)
            return
        if self.stager is None:
            raise RuntimeError("blocks rest on another tier and nothing was set up to bring them")
        with self.stager.staged(layer, self) as staging:
            self.store.copy_local(layer, self.blocks, staging)
            yield self.store.staged_views(layer, staging, len(self.blocks))


class KVBatch:
    """One micro-batch's tables, for every KV group; built once per call and used by all its layers."""

    def __init__(
        self, store: KVStore, spans: Sequence[Span], starts: Sequence[int], rows: Sequence[Row], stager: "Stager | None"
    ) -> None:
        self.store, self.spans, self.starts, self.rows, self.stager = store, spans, starts, rows, stager
        self._writes: dict[int, CallTables] = {}
        self._portions: dict[int, list[Portion]] = {}
        self._handles: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._newest_dense: list[int] | None = None
        for group in range(len(store.groups)):
            everyone = range(len(spans))
            self._writes[group] = self._tables(everyone, self._local_ids(everyone, group))
            self._portions[group] = list(self._split(group))
            for portion in self._portions[group]:
                portion.open = self._open(portion, group)

    def _local_ids(self, chosen: Sequence[int], group: int) -> list[list[int]]:
        """Block ids in the compute tier's arena; blocks elsewhere or left behind by a window count as absent."""
        tier = self.store.device.compute_tier
        return [[b.id if b is not None and b.tier == tier else -1 for b in self.rows[i].tables[group]] for i in chosen]

    def _tables(self, chosen: Sequence[int], ids: list[list[int]]) -> CallTables:
        spans = [(self.spans[i].first, self.spans[i].count) for i in chosen]
        return CallTables.build(spans, ids, self.store.block_tokens, self.store.device.torch_device)

    def _open(self, portion: Portion, group: int) -> OpenSpans | None:
        if self.store.open is None:
            return None
        chosen = portion.chosen
        spans = [(self.spans[i].first, self.spans[i].count) for i in chosen]
        samples = [self.spans[i].samples for i in chosen]
        places = [self.store.open.place(self.rows[i].id) for i in chosen]
        own, device = self._local_ids(chosen, group), self.store.device.torch_device
        return OpenSpans.build(self.store.block_tokens, spans, samples, places, own, portion.ids, device)

    def _split(self, group: int) -> Iterator[Portion]:
        """One portion for the rows on the compute tier, and as many as staging room demands for the others."""
        tier = self.store.device.compute_tier
        away = [
            i for i, row in enumerate(self.rows) if any(b is not None and b.tier != tier for b in row.tables[group])
        ]
        if not away:
            everyone = range(len(self.spans))
            yield Portion(tuple(everyone), None, self._local_ids(everyone, group), self._writes[group], self.store)
            return
        if here := [i for i in range(len(self.spans)) if i not in set(away)]:
            ids = self._local_ids(here, group)
            yield Portion(tuple(here), self._flat(here), ids, self._tables(here, ids), self.store)
        if self.stager is None:
            raise RuntimeError("rows rest on another tier and nothing was set up to bring them")
        for chosen in self.stager.grouped(away, lambda i: self._held(i, group), group):
            yield self._staged(chosen, group)

    def _held(self, index: int, group: int) -> list[Block]:
        return [b for b in self.rows[index].tables[group] if b is not None]

    def _staged(self, chosen: Sequence[int], group: int) -> Portion:
        blocks: list[Block] = []
        ids: list[list[int]] = []
        for i in chosen:
            held = self._held(i, group)
            absent = len(self.rows[i].tables[group]) - len(held)  # a window leaves blocks behind from the front
            ids.append([-1] * absent + list(range(len(blocks), len(blocks) + len(held))))
            blocks += held
        tables = self._tables(chosen, ids)
        return Portion(tuple(chosen), self._flat(chosen), ids, tables, self.store, tuple(blocks), self.stager)

    def _flat(self, chosen: Sequence[int]) -> torch.Tensor:
        return flat_index(self.spans, self.starts, chosen).to(self.store.device.torch_device)

    def append(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        """Write the call's new keys and values, (1, heads, T, dim) each, to their rows' blocks."""
        group, arenas = self.store.group_of(layer), self.store.arenas(layer)
        if self.store.open is None:
            append(keys[0], values[0], *wide_arenas(arenas), self._writes[group])
            return
        opened = self.store.open.arenas(layer)
        for portion in self._portions[group]:
            k_new, v_new = (portion.mine(x[0].transpose(0, 1)).transpose(0, 1) for x in (keys, values))
            if portion.open is not None:
                portion.open.write(layer, k_new, v_new, opened, arenas)

    def remember(self, keys: torch.Tensor, layer: int) -> None:
        """Know these keys again when attention is called with them, without keeping them alive."""
        self._handles[id(keys)] = weakref.ref(keys, lambda _: self._let_go(layer)), layer

    def _let_go(self, layer: int) -> None:
        """Nobody attends to a layer's new keys any more."""
        for portion in self._portions[self.store.group_of(layer)]:
            if portion.open is not None:
                portion.open.wide.pop(layer, None)

    def layer_of(self, keys: torch.Tensor) -> int | None:
        """The layer whose ``update`` returned these keys; None where they are dense (``dense_lengths`` says whose)."""
        known = self._handles.get(id(keys))
        return known[1] if known is not None and known[0]() is keys else None

    def portions(self, layer: int) -> list[Portion]:
        """How a layer's attention is cut."""
        return self._portions[self.store.group_of(layer)]

    def gather(self, layer: int, dtype: torch.dtype) -> Wide:
        """All keys and values of the batch's rows, one after another: (1, heads, sum of lengths, dim) each."""
        group = self.store.group_of(layer)
        parts: dict[int, Wide] = {}
        lengths = [0] * len(self.spans)
        for portion in self._portions[group]:
            with portion.arenas(layer) as arenas:
                k_arena, v_arena = wide_arenas(arenas)
                for i, ids in zip(portion.chosen, portion.ids, strict=True):
                    table = [n for n in ids if n >= 0]
                    end = self.spans[i].first + self.spans[i].count - (len(ids) - len(table)) * self.store.block_tokens
                    parts[i] = _joined(k_arena, table, end, dtype), _joined(v_arena, table, end, dtype)
                    lengths[i] = end
        keys = torch.cat([parts[i][0] for i in range(len(self.spans))], 1)[None]
        values = torch.cat([parts[i][1] for i in range(len(self.spans))], 1)[None]
        self._newest_dense = lengths
        return keys, values

    def dense_lengths(self, keys: torch.Tensor) -> list[int]:
        """How many of the dense keys belong to each span; RuntimeError where they are of unknown origin."""
        if self._newest_dense is None or keys.shape[2] != sum(self._newest_dense):
            raise RuntimeError("attention got keys that no cache layer of this call returned")
        return self._newest_dense


def _joined(arena: torch.Tensor, table: Sequence[int], end: int, dtype: torch.dtype) -> torch.Tensor:
    """(heads, end, dim): the first ``end`` tokens of the blocks in a table."""
    blocks = arena[torch.tensor(table, dtype=torch.long, device=arena.device)]
    count, heads, tokens, dim = blocks.shape
    return blocks.transpose(0, 1).reshape(heads, count * tokens, dim)[:, :end].to(dtype)
