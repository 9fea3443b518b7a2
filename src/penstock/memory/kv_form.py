"""What a block of KV looks like: its tokens, its dtype or its packed format, and how many bytes that takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from penstock.model.pages import SECTOR
from penstock.quant.grouped import Grouped
from penstock.quant.packed import Packed
from penstock.schedule.types import GroupSpec


@dataclass(frozen=True, slots=True)
class PackedBlocks:
    """Full blocks of keys or values, packed. rows: (blocks, heads, tokens, dim), or (blocks, heads, dim, tokens) by
    channel."""

    rows: Packed
    by_channel: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(blocks, heads, tokens, dim), as of blocks that are not packed."""
        blocks, heads, *matrix = self.rows.shape
        return (blocks, heads, *(reversed(matrix) if self.by_channel else matrix))

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.rows.device

    def wide(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Chosen blocks (n,) as (n, heads, tokens, dim)."""
        found = self.rows[ids].wide(dtype)
        return found.transpose(2, 3) if self.by_channel else found

    def pack(self, ids: torch.Tensor, wide: torch.Tensor) -> None:
        """Pack blocks (n, heads, tokens, dim) to the places (n,); what half precision does not hold becomes NaN."""
        from penstock.quant.rounding import pack_kv  # imports numba: only where something is packed

        rows = wide.transpose(2, 3) if self.by_channel else wide
        flat = rows.float().cpu().reshape(-1, rows.shape[-1]).numpy()
        assert isinstance(self.rows.form, Grouped)
        packed = torch.from_numpy(pack_kv(flat, self.rows.form))
        self.rows.data[ids] = packed.view(*rows.shape[:-1], -1).to(self.device)


Wide = tuple[torch.Tensor, torch.Tensor]  # keys and values as they are
Arena = torch.Tensor | PackedBlocks
Arenas = tuple[Arena, Arena]  # of keys and of values


def wide_arenas(arenas: Arenas) -> Wide:
    """Arenas of blocks that are not packed; TypeError where they are."""
    keys, values = arenas
    if isinstance(keys, PackedBlocks) or isinstance(values, PackedBlocks):
        raise TypeError("packed blocks where they are needed as they are")
    return keys, values


def packed_arenas(arenas: Arenas) -> tuple[PackedBlocks, PackedBlocks]:
    """Arenas of packed blocks; TypeError where they are not."""
    keys, values = arenas
    if not isinstance(keys, PackedBlocks) or not isinstance(values, PackedBlocks):
        raise TypeError("blocks as they are where they are needed packed")
    return keys, values


@dataclass(frozen=True, slots=True)
class KVForm:
    """How KV is kept. dtype: of elements that are not packed. tokens: of a block. packed: the format of full blocks.

    Packed keys lie by channel, values by token (KIVI: Liu et al., 2024): a channel's keys of one block are one group,
    and a token's values are cut into groups. Only full blocks are packed; the newest tokens of a row stay in ``dtype``.
    """

    dtype: torch.dtype
    tokens: int
    packed: Grouped | None = None


@dataclass(frozen=True, slots=True)
class KVLayer:
    """One cache layer's KV: heads and widths of keys and of values, per token."""

    k_heads: int
    k_dim: int
    v_heads: int
    v_dim: int

    def k_bytes(self, form: KVForm) -> int:
        """Bytes of the keys of one block."""
        if form.packed is not None:
            return self.k_heads * form.packed.nbytes((self.k_dim, form.tokens))
        return self.k_heads * self.k_dim * form.tokens * form.dtype.itemsize

    def v_bytes(self, form: KVForm) -> int:
        """Bytes of the values of one block."""
        if form.packed is not None:
            return self.v_heads * form.packed.nbytes((form.tokens, self.v_dim))
        return self.v_heads * self.v_dim * form.tokens * form.dtype.itemsize

    def block_bytes(self, form: KVForm) -> int:
        """Bytes of one block, keys then values, rounded up to whole sectors so that it can move by direct I/O."""
        return -(-(self.k_bytes(form) + self.v_bytes(form)) // SECTOR) * SECTOR

    def open_bytes(self, form: KVForm) -> int:
        """Bytes of a row's newest block while it is not packed yet; 0 where blocks are never packed."""
        if form.packed is None:
            return 0
        return (self.k_heads * self.k_dim + self.v_heads * self.v_dim) * form.tokens * form.dtype.itemsize

    def views(self, arena: torch.Tensor, form: KVForm, base: int, count: int) -> Arenas:
        """Keys (count, heads, tokens, dim) and values of ``count`` blocks that start at byte ``base`` of an arena."""
        stride = self.block_bytes(form)
        blocks = arena[base : base + stride * count]
        if form.packed is not None:
            keys = (self.k_heads, self.k_dim, form.packed.row_bytes(form.tokens))
            values = (self.v_heads, form.tokens, form.packed.row_bytes(self.v_dim))
            k_rows = Packed(form.packed, form.tokens, _strided(blocks, (count, *keys), stride, 0))
            v_rows = Packed(form.packed, self.v_dim, _strided(blocks, (count, *values), stride, self.k_bytes(form)))
            return PackedBlocks(k_rows, by_channel=True), PackedBlocks(v_rows, by_channel=False)
        elements, item = blocks.view(form.dtype), form.dtype.itemsize
        k_shape, v_shape = (
            (count, h, form.tokens, d) for h, d in ((self.k_heads, self.k_dim), (self.v_heads, self.v_dim))
        )
        return (
            _strided(elements, k_shape, stride // item, 0),
            _strided(elements, v_shape, stride // item, self.k_bytes(form) // item),
        )


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers, by cache index, whose blocks live and die together. window: keys a query reaches back to, or None."""

    layers: Mapping[int, KVLayer]
    window: int | None = None

    def spec(self, form: KVForm) -> GroupSpec:
        """What the scheduler needs to know of it."""
        return GroupSpec(sum(layer.block_bytes(form) for layer in self.layers.values()), self.window)


def kv_form(layers: Sequence[KVLayer], dtype: torch.dtype, packed: Grouped | None = None) -> KVForm:
    """Blocks of 16 tokens, or more while a sector would be left mostly empty (tiny models, latents); at most 64.

    Packed ones have as many tokens as a group has elements.
    """
    if packed is not None:
        return KVForm(dtype, packed.group, packed)
    form = KVForm(dtype, 16)
    while form.tokens < 64 and any(
        layer.block_bytes(form) > 1.25 * (layer.k_bytes(form) + layer.v_bytes(form)) for layer in layers
    ):
        form = KVForm(dtype, form.tokens * 2)
    return form


def _strided(arena: torch.Tensor, shape: Sequence[int], stride: int, offset: int) -> torch.Tensor:
    """Blocks of this shape, ``stride`` elements from one to the next."""
    inner = (math.prod(shape[i + 1 :]) for i in range(1, len(shape)))
    return arena.as_strided(tuple(shape), (stride, *inner), arena.storage_offset() + offset)
