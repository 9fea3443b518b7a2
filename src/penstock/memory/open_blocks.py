"""The newest block of every row where full blocks are packed: unpacked, where it is written, until it is full."""

import heapq
from collections.abc import Callable, Mapping

import torch

from penstock.memory.kv_form import KVForm, KVLayer


class OpenBlocks:
    """A place per row in flight, in every layer. rows: in flight at most. alloc: takes bytes, as ``Device.alloc``.

    A row takes its place with its first tokens and keeps it until it is forgotten. Host memory is taken as it is first
    written, and the lowest free place is handed out, so that what is used is what was needed at most.
    """

    def __init__(
        self, layers: Mapping[int, KVLayer], form: KVForm, rows: int, alloc: Callable[[int, bool], torch.Tensor]
    ) -> None:
        self._layers, self._form, self._rows = layers, form, rows
        self._free = list(range(rows))
        self._places: dict[int, int] = {}
        self._bases: dict[int, int] = {}
        base = 0
        for index, layer in layers.items():
            self._bases[index] = base
            base += rows * layer.open_bytes(form)
        self._arena = alloc(base, True)

    def place(self, row: int) -> int:
        """The row's place, from now on."""
        if row not in self._places:
            self._places[row] = heapq.heappop(self._free)
        return self._places[row]

    def forget(self, row: int) -> None:
        """Free a row's place, if it has one."""
        if (place := self._places.pop(row, None)) is not None:
            heapq.heappush(self._free, place)

    def arenas(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's open blocks: keys (places, heads, tokens, dim) and values."""
        of = self._layers[layer]
        nbytes = self._rows * of.open_bytes(self._form)
        elements = self._arena[self._bases[layer] : self._bases[layer] + nbytes].view(self._form.dtype)
        cut = self._rows * of.k_heads * of.k_dim * self._form.tokens
        return (
            elements[:cut].view(self._rows, of.k_heads, self._form.tokens, of.k_dim),
            elements[cut:].view(self._rows, of.v_heads, self._form.tokens, of.v_dim),
        )
