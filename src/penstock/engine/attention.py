"""Attention of a flat call: every span attends to its own row's keys only, which lie in blocks or come concatenated.

All masks here are ranges: query t sees the keys from ``lowest[t]`` to its own position. Shapes: T tokens of the call,
S spans computed together, N queries, L keys, B tokens of a block, G query heads of one kv head.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

PIECE_BYTES = 64 << 20  # keys and values copied out of blocks at a time
SCORE_BYTES = 16 << 20  # scores held at a time; less stays in cache, more makes longer products

Result = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class SpanGroup:
    """Spans of more than one token with the same positions and the same blocks present, computed as one batch.

    tokens (S, count): their places in the call. blocks (S, n): ids of the blocks present. indices: which blocks of
    their rows these are, ascending.
    """

    first: int
    count: int
    tokens: torch.Tensor
    blocks: torch.Tensor
    indices: tuple[int, ...]

    def parts(self, spans: int) -> Iterator["SpanGroup"]:
        """The same in batches of at most ``spans`` spans."""
        for start in range(0, len(self.tokens), spans):
            stop = start + spans
            yield replace(self, tokens=self.tokens[start:stop], blocks=self.blocks[start:stop])


@dataclass(frozen=True, slots=True)
class CallTables:
    """Where a call's keys and values lie, for all layers of one group.

    write_blocks, write_offsets (T,): block and place in it of each token's new key, block -1 where it is not at hand.
    decode_tokens (R,): places in the call of the spans of one token; decode_lengths (R,): their keys, own included;
    decode_table (R, width) int32: their blocks, -1 where one is absent. groups: the longer spans.
    """

    tokens: int
    block_tokens: int
    write_blocks: torch.Tensor
    write_offsets: torch.Tensor
    writable: bool
    decode_tokens: torch.Tensor
    decode_lengths: torch.Tensor
    decode_table: torch.Tensor
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
        starts = np.cumsum([0, *(count for _, count in spans)])
        positions = np.concatenate([np.arange(first, first + count) for first, count in spans] or [np.empty(0, int)])
        write_blocks = np.empty(len(positions), np.int64)
        decode: list[int] = []
        alike: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
        for i, (first, count) in enumerate(spans):
            table = np.asarray(tables[i], np.int64)
            inside = slice(starts[i], starts[i + 1])
            write_blocks[inside] = table[positions[inside] // block_tokens]
            if count == 1:
                decode.append(i)
                continue
            present = np.flatnonzero(table[: (first + count - 1) // block_tokens + 1] >= 0)
            alike.setdefault((first, count, tuple(present.tolist())), []).append(i)

        lengths = np.array([spans[i][0] + 1 for i in decode], np.int64)
        decode_table = np.full((len(decode), -(-int(lengths.max(initial=0)) // block_tokens)), -1, np.int32)
        for row, i in enumerate(decode):
            blocks = tables[i][: -(-int(lengths[row]) // block_tokens)]
            decode_table[row, : len(blocks)] = blocks

        def placed(array: np.ndarray[tuple[int, ...], np.dtype[np.integer]]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        groups = tuple(
            SpanGroup(
                first,
                count,
                placed(starts[members][:, None] + np.arange(count)),
                placed(np.array([[tables[i][index] for index in present] for i in members], np.int64)),
                present,
            )
            for (first, count, present), members in alike.items()
        )
        return cls(
            len(positions),
            block_tokens,
            placed(write_blocks),
            placed(positions % block_tokens),
            bool((write_blocks >= 0).all()),
            placed(starts[:-1][decode]),
            placed(lengths),
            placed(decode_table),
            groups,
        )


def append(
    k_new: torch.Tensor, v_new: torch.Tensor, k_arena: torch.Tensor, v_arena: torch.Tensor, tables: CallTables
) -> None:
    """Write a call's new keys and values (kv_heads, T, dim) into their blocks, in the arenas' dtype."""
    if not tables.writable:
        raise ValueError("a block that new keys belong to is not here")
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
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
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
    if len(tables.decode_tokens) and q.device.type == "cpu":
        from penstock.engine import decode_kernel  # imports numba: only where it is needed

        first_keys = torch.zeros(len(q), dtype=torch.int64) if lowest is None else lowest.to(torch.int64).contiguous()
        decode_kernel.decode(
            q.float(),
            k_arena,
            v_arena,
            tables.decode_table.numpy(),
            tables.decode_tokens.numpy(),
            tables.decode_lengths.numpy(),
            first_keys.numpy(),
            scaling,
            softcap,
            out,
            lse,
        )
    elif len(tables.decode_tokens):
        decode_gathered(q, k_arena, v_arena, tables, lowest, scaling, softcap, out, lse)
    for group in tables.groups:
        low = None if lowest is None else lowest[group.tokens]
        # spans at the same positions see the same ranges in every known family; if not, they go one by one
        together = low is None or bool((low == low[:1]).all())
        for part in group.parts(len(group.tokens) if together else 1):
            _attend_group(q, k_arena, v_arena, part, tables.block_tokens, lowest, scaling, softcap, out, lse)
    return out, lse


def attend_dense(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    spans: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> Result:
    """``attend`` over keys (kv_heads, sum of lengths, dk) and values of all rows, concatenated in the order of spans.

    Row i owns ``lengths[i]`` of them, which end at its last position.
    """
    out = torch.empty((*q.shape[:2], values.shape[2]), dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    token = key = 0
    for (first, count), length in zip(spans, lengths, strict=True):
        low = None if lowest is None else lowest[token : token + count]
        positions = torch.arange(first + count - length, first + count, device=q.device)
        mine = slice(token, token + count), slice(key, key + length)
        found = _attend_keys(
            q[None, mine[0]], keys[None, :, mine[1]], values[None, :, mine[1]], positions, first, low, scaling, softcap
        )
        out[mine[0]], lse[mine[0]] = found[0][0], found[1][0]
        token, key = token + count, key + length
    out, lse = finish(out, lse, sinks)
    return out.to(q.dtype), lse


def merge(parts: Sequence[Result]) -> Result:
    """Attention over all keys from (out (…, dv), lse (…)) over disjoint subsets of them, all without sinks."""
    if len(parts) == 1:
        return parts[0]
    each = torch.stack([lse for _, lse in parts])
    lse = each.logsumexp(0)
    shares = (each - lse.clamp(min=torch.finfo(lse.dtype).min)).exp()
    return sum(
        (out * share[..., None] for (out, _), share in zip(parts, shares, strict=True)), torch.zeros_like(parts[0][0])
    ), lse


def finish(out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor | None) -> Result:
    """Add the sinks, once, to what all keys together gave."""
    if sinks is None:
        return out, lse
    scores = sinks.to(lse.dtype)
    return out * torch.sigmoid(lse - scores)[..., None], torch.logaddexp(lse, scores.expand_as(lse))


def decode_gathered(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    tables: CallTables,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Decode rows by torch operations alone, on any device: blocks are gathered and padded to the longest row."""
    kv_heads, block_tokens = k_arena.shape[1:3]
    row_bytes = tables.decode_table.shape[1] * _block_bytes(k_arena, v_arena, q.dtype)
    at_once = max(1, PIECE_BYTES // row_bytes)
    for start in range(0, len(tables.decode_tokens), at_once):
        rows = slice(start, start + at_once)
        tokens, table = tables.decode_tokens[rows], tables.decode_table[rows].long()
        keys, values = (_gathered(arena, table.clamp(min=0), q.dtype) for arena in (k_arena, v_arena))
        position = torch.arange(keys.shape[2], device=q.device)
        here = (table >= 0).repeat_interleave(block_tokens, 1) & (position < tables.decode_lengths[rows, None])
        if lowest is not None:
            here &= position >= lowest[tokens, None]
        # memory that was never written may hold NaN, and 0 · NaN is not 0
        values.masked_fill_(~here[:, None, :, None], 0)
        queries = q[tokens].reshape(len(tokens), kv_heads, -1, q.shape[2])
        found, seen = _softmax(queries @ keys.mT, here[:, None, None], values, scaling, softcap)
        out[tokens], lse[tokens] = found.flatten(1, 2), seen.flatten(1, 2)


def _attend_group(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
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
        out[group.tokens], lse[group.tokens] = 0.0, -math.inf
        return
    block_bytes = _block_bytes(k_arena, v_arena, q.dtype)
    blocks_at_once = max(1, PIECE_BYTES // block_bytes)
    for part in group.parts(max(1, blocks_at_once // len(needed))):
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
            keys, values = (_gathered(arena, ids, q.dtype)[:, :, inside] for arena in (k_arena, v_arena))
            more = _attend_keys(q[part.tokens], keys, values, positions[inside], part.first, low, scaling, softcap)
            found = more if found is None else merge([found, more])
        if found is not None:
            out[part.tokens], lse[part.tokens] = found


def _attend_keys(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    first: int,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Result:
    """Queries (S, N, heads, dk) from position ``first`` on, keys (S, kv_heads, L, dk) at ascending positions (L,)."""
    spans, count, heads, _ = q.shape
    kv_heads, length = keys.shape[1:3]
    group = heads // kv_heads
    out = torch.empty((spans, count, heads, values.shape[3]), dtype=torch.float32, device=q.device)
    lse = torch.empty((spans, count, heads), dtype=torch.float32, device=q.device)
    at_once = max(1, SCORE_BYTES // (4 * spans * heads * length))
    ends = torch.searchsorted(positions, torch.arange(first, first + count, device=q.device), right=True).tolist()
    for start in range(0, count, at_once):
        stop = min(start + at_once, count)
        seen = ends[stop - 1]  # keys behind the last of these queries are left out
        # (S, kv_heads, G · N, dk): the heads that share a key go through one product
        queries = (
            q[:, start:stop].reshape(spans, stop - start, kv_heads, group, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
        )
        own = torch.arange(first + start, first + stop, device=q.device)[:, None]
        allowed = positions[:seen] <= own
        if lowest is not None:
            allowed &= positions[:seen] >= lowest[start:stop, None]
        shape = (spans, kv_heads, group, stop - start)
        scores = queries @ keys[:, :, :seen].mT
        found, total = _softmax(scores, allowed.repeat(group, 1), values[:, :, :seen], scaling, softcap)
        out[:, start:stop] = found.reshape(*shape, -1).permute(0, 3, 1, 2, 4).flatten(2, 3)
        lse[:, start:stop] = total.reshape(shape).permute(0, 3, 1, 2).flatten(2, 3)
    return out, lse


def _softmax(
    scores: torch.Tensor, allowed: torch.Tensor, values: torch.Tensor, scaling: float, softcap: float | None
) -> Result:
    """Weigh values (…, L, dv) by the softmax of raw scores (…, Q, L), which are overwritten, where ``allowed``."""
    scores = scores.float().mul_(scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if scores.shape[-1] == 0:
        return values.new_zeros((*scores.shape[:-1], values.shape[-1]), dtype=torch.float32), scores.sum(-1).log()
    scores.masked_fill_(~allowed, -math.inf)
    top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    out = (weights.to(values.dtype) @ values).float() / total.clamp(min=torch.finfo(torch.float32).tiny)
    return out, (top + total.log()).squeeze(-1)


def _gathered(arena: torch.Tensor, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Blocks (S, n) as (S, heads, n · B, dim), contiguous."""
    return arena[blocks].transpose(1, 2).to(dtype).flatten(2, 3)


def _block_bytes(k_arena: torch.Tensor, v_arena: torch.Tensor, dtype: torch.dtype) -> int:
    return k_arena.shape[1] * k_arena.shape[2] * (k_arena.shape[3] + v_arena.shape[3]) * dtype.itemsize
