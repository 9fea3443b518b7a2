"""A ring of buffers through which KV blocks come from slower tiers, one layer and portion ahead of attention."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from penstock.memory.buffers import aligned_buffer
from penstock.memory.clock import Clock
from penstock.memory.kv import Fetch, KVStore
from penstock.schedule.types import Block

if TYPE_CHECKING:
    from penstock.engine.kv_batch import Portion

Item = tuple[int, "Portion"]  # a layer and a portion of one call


class Stager:
    """Brings portions' blocks in the order that attention was seen to ask for them, each while the one before is used.

    nbytes: of one buffer; a portion's blocks of one layer fit it. Two buffers take turns. on_host: blocks are attended
    to beside the compute device, in host memory, and that waits for them.
    """

    def __init__(self, store: KVStore, nbytes: int, clock: Clock, on_host: bool = False) -> None:
        self.store, self.clock, self.nbytes, self.on_host = store, clock, nbytes, on_host
        self._buffers = [self._alloc(nbytes) for _ in range(2)]
        self._ahead: tuple[Item, list[Fetch], int] | None = None
        self._follows: dict[Item, Item] = {}
        self._turn = 0

    def _alloc(self, nbytes: int) -> torch.Tensor:
        return aligned_buffer(nbytes) if self.on_host else self.store.device.alloc(nbytes)

    def begin(self, order: Sequence[Item]) -> None:
        """Expect these items, in this order, in the coming sweep, and start on the first."""
        self._drop()  # what a sweep that was interrupted had asked for would land in the same buffer
        self._follows = dict(pairwise(order))
        self._ahead = self._fetch(order[0], self._turn) if order else None

    def grouped(self, chosen: Sequence[int], held: Callable[[int], list[Block]], group: int) -> Iterator[list[int]]:
        """The chosen spans in runs whose blocks of any one layer fit a buffer."""
        stride = max(self.store.stride(layer) for layer in self.store.groups[group].layers)
        run: list[int] = []
        used = 0
        for index in chosen:
            need = len(held(index)) * stride
            if run and used + need > self.nbytes:
                yield run
                run, used = [], 0
            run.append(index)
            used += need
        if run:
            yield run

    @contextmanager
    def staged(self, layer: int, portion: "Portion") -> Iterator[torch.Tensor]:
        """The buffer that holds a portion's blocks of one layer; the next item is fetched meanwhile."""
        item = layer, portion
        if self._ahead is None or self._ahead[0] != item:
            self._drop()
            self._ahead = self._fetch(item, self._turn)
        _, pending, turn = self._ahead
        with nullcontext() if self.on_host else self.clock.wait("disk→cpu"):
            for copied in pending:
                copied.result()
        self._turn = 1 - turn
        following = self._follows.get(item)
        self._ahead = self._fetch(following, self._turn) if following is not None else None
        yield self._buffers[turn]

    def _fetch(self, item: Item, turn: int) -> tuple[Item, list[Fetch], int]:
        layer, portion = item
        return item, self.store.fetch(layer, portion.blocks or (), self._buffers[turn]), turn

    def _drop(self) -> None:
        """Wait for a fetch that nobody asks for any more, to use its buffer again; how it went is no matter."""
        if self._ahead is not None:
            for fetch in self._ahead[1]:
                fetch.exception()
            self._ahead = None
