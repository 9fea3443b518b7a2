"""Attention of a flat call over KV blocks: every span attends to its own row's keys only.

All masks here are ranges: query t sees the keys from ``lowest[t]`` to its own position. Shapes: T tokens of the call,
S spans computed together, B tokens of a block.
"""

import math

import torch

from penstock.engine import dense_attention
from penstock.engine.call_tables import CallTables, SpanGroup
from penstock.engine.dense_attention import Result, attend_keys, finish, merge, softmax
from penstock.memory.kv_form import Arena, PackedBlocks, wide_arenas

PIECE_BYTES = 64 << 20  # keys and values of a span copied out of blocks at a time


def append(
    k_new: torch.Tensor, v_new: torch.Tensor, k_arena: torch.Tensor, v_arena: torch.Tensor, tables: CallTables
) -> None:
    """Write a call's new keys and values (kv_heads, T, dim) into their blocks, in the arenas' dtype."""
    if not tables.writable:
        raise ValueError("a block that new keys belong to is not here")
    if k_arena.device.type == "cpu":
        from penstock.engine import append_kernel  # imports numba: only where it is needed

        if append_kernel.can_scatter(k_new, k_arena) and append_kernel.can_scatter(v_new, v_arena):
            blocks, offsets = tables.write_blocks.numpy(), tables.write_offsets.numpy()
            append_kernel.scatter(k_new, k_arena, blocks, offsets)
            append_kernel.scatter(v_new, v_arena, blocks, offsets)
            return
    place = tables.write_blocks, slice(None), tables.write_offsets
    k_arena[place] = k_new.transpose(0, 1).to(k_arena.dtype)
    v_arena[place] = v_new.transpose(0, 1).to(v_arena.dtype)


def attend(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    tables: CallTables,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> Result:
    """Attention of a call over its rows' blocks: (out (T, heads, dv) in q's dtype, lse (T, heads) float32 with sinks).

    q (T, heads, dk); k_arena, v_arena (n_blocks, kv_heads, B, dk or dv), contiguous inside a block; lowest (T,) int64:
    the first key position that each query sees, None = 0; softcap: scores become ``softcap · tanh(score / softcap)``;
    sinks (heads,): a score that takes weight and gives nothing.
    """
    out, lse = attend_blocks(q, k_arena, v_arena, tables, lowest, scaling, softcap)
    out, lse = finish(out, lse, sinks)
    return out.to(q.dtype), lse


def attend_blocks(
    q: torch.Tensor,
    k_arena: Arena,
    v_arena: Arena,
    tables: CallTables,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
) -> Result:
    """``attend`` over the blocks that are here, to be merged with those that are not: float32, lse without sinks.

    A query without any key gets out 0 and lse -inf.
    """
    out = torch.empty((*q.shape[:2], v_arena.shape[3]), dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if len(tables.decode_tokens):
        decodes = _decode_compiled if q.device.type == "cpu" else decode_gathered
        decodes(q, k_arena, v_arena, tables, lowest, scaling, softcap, out, lse)
    for group in tables.groups:
        low = None if lowest is None else group.take(lowest)
        # spans at the same positions see the same ranges in every known family; if not, they go one by one
        together = low is None or bool((low == low[:1]).all())
        for part in group.parts(len(group.tokens) if together else 1):
            _attend_group(q, k_arena, v_arena, part, tables.block_tokens, lowest, scaling, softcap, out, lse)
    return out, lse


def _decode_compiled(
    q: torch.Tensor,
    k_arena: Arena,
    v_arena: Arena,
    tables: CallTables,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Decode rows by compiled kernels, on the CPU."""
    from penstock.engine import decode_kernel, packed_decode_kernel  # import numba: only where they are needed

    first_keys = torch.zeros(len(q), dtype=torch.int64) if lowest is None else lowest.to(torch.int64).contiguous()
    table, tokens, low = tables.decode_table.numpy(), tables.decode_tokens.numpy(), first_keys.numpy()
    if isinstance(k_arena, PackedBlocks) and isinstance(v_arena, PackedBlocks):
        decode_packed = packed_decode_kernel.decode
        decode_packed(q.float(), k_arena, v_arena, table, tokens, low, scaling, softcap, out, lse)
    else:
        keys, values = wide_arenas((k_arena, v_arena))
        lengths = tables.decode_lengths.numpy()
        decode_kernel.decode(q.float(), keys, values, table, tokens, lengths, low, scaling, softcap, out, lse)


def decode_gathered(
    q: torch.Tensor,
    k_arena: Arena,
    v_arena: Arena,
    tables: CallTables,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Decode rows by torch operations alone, on any device: blocks here are gathered, padded to the row with most."""
    kv_heads, block_tokens = k_arena.shape[1:3]
    row_bytes = tables.decode_present.shape[1] * _block_bytes(k_arena, v_arena, q.dtype)
    at_once = max(1, PIECE_BYTES // max(1, row_bytes))
    for start in range(0, len(tables.decode_tokens), at_once):
        rows = slice(start, start + at_once)
        tokens, present = tables.decode_tokens[rows], tables.decode_present[rows]
        table = tables.decode_table[rows].long().gather(1, present.clamp(min=0))
        keys, values = (gathered(arena, table.clamp(min=0), q.dtype) for arena in (k_arena, v_arena))
        position = (present[:, :, None] * block_tokens + torch.arange(block_tokens, device=q.device)).flatten(1)
        here = (present >= 0).repeat_interleave(block_tokens, 1) & (position < tables.decode_lengths[rows, None])
        if lowest is not None:
            here &= position >= lowest[tokens, None]
        # memory that was never written may hold NaN, and 0 · NaN is not 0
        values.masked_fill_(~here[:, None, :, None], 0)
        queries = q[tokens].reshape(len(tokens), kv_heads, -1, q.shape[2])
        found, seen = softmax(queries @ keys.mT, here[:, None, None], values, scaling, softcap)
        out[tokens], lse[tokens] = found.flatten(1, 2), seen.flatten(1, 2)


def _attend_group(
    q: torch.Tensor,
    k_arena: Arena,
    v_arena: Arena,
    group: SpanGroup,
    block_tokens: int,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Attend for equal spans: as many at a time, and as many blocks, as may be copied out together."""
    low = None if lowest is None else lowest[group.tokens[0]]
    start, stop = 0 if low is None else int(low.min()), group.first + group.count
    needed = [at for at, index in enumerate(group.indices) if (index + 1) * block_tokens > start]
    if not needed:
        group.put(out, 0.0)
        group.put(lse, -math.inf)
        return
    block_bytes = _block_bytes(k_arena, v_arena, q.dtype)
    blocks_at_once = max(1, PIECE_BYTES // block_bytes)
    spans_at_once = dense_attention.BATCH_BYTES // (len(needed) * block_bytes)
    for part in group.parts(max(1, spans_at_once)):
        found: Result | None = None
        for at in range(0, len(needed), blocks_at_once):
            piece = needed[at : at + blocks_at_once]
            ids = part.blocks[:, piece[0] : piece[-1] + 1]
            index = torch.tensor([part.indices[i] for i in piece], device=q.device)
            positions = (index[:, None] * block_tokens + torch.arange(block_tokens, device=q.device)).flatten()
            # only the outermost blocks have places that no query sees; these may never have been written
            head = max(0, start - part.indices[piece[0]] * block_tokens)
            tail = max(0, (part.indices[piece[-1]] + 1) * block_tokens - stop)
            inside = slice(head, len(positions) - tail)
            keys, values = (gathered(arena, ids, q.dtype)[:, :, inside] for arena in (k_arena, v_arena))
            more = attend_keys(part.take(q), keys, values, positions[inside], part.first, low, scaling, softcap)
            found = more if found is None else merge([found, more])
        if found is not None:
            part.put(out, found[0])
            part.put(lse, found[1])


def gathered(arena: Arena, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Blocks (S, n) as (S, heads, n · B, dim), contiguous."""
    heads, block_tokens, dim = arena.shape[1:]
    joined = torch.empty((len(blocks), heads, blocks.shape[1], block_tokens, dim), dtype=dtype, device=arena.device)
    chosen = blocks.flatten()
    found = arena.wide(chosen, dtype) if isinstance(arena, PackedBlocks) else arena.index_select(0, chosen)
    joined.copy_(found.reshape(*blocks.shape, *arena.shape[1:]).transpose(1, 2))
    return joined.flatten(2, 3)


def _block_bytes(k_arena: Arena, v_arena: Arena, dtype: torch.dtype) -> int:
    return k_arena.shape[1] * k_arena.shape[2] * (k_arena.shape[3] + v_arena.shape[3]) * dtype.itemsize
