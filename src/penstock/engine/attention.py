"""Attention of a flat call: every span attends to its own row's keys only, which lie in blocks or come concatenated.

All masks here are ranges: query t sees the keys from ``lowest[t]`` to its own position. Shapes: T tokens of the call,
S spans computed together, N queries, L keys, B tokens of a block, G query heads of one kv head.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch.torch_version import TorchVersion

from penstock.engine.call_tables import CallTables, SpanGroup

PIECE_BYTES = 64 << 20  # keys and values of a span copied out of blocks at a time
BATCH_BYTES = (
    4 << 20
)  # the same of spans computed together: what stays in cache, and is not handed out by the system anew
SCORE_BYTES = 4 << 20  # scores held at a time; less stays in cache, more makes longer products
FUSED_QUERIES = 256  # per call of the fused kernel, which computes the masked scores too

Result = tuple[torch.Tensor, torch.Tensor]


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
        low = None if lowest is None else group.take(lowest)
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
    for ((first, count), length), alike in groupby(zip(spans, lengths, strict=True)):
        positions = torch.arange(first + count - length, first + count, device=q.device)
        left = len(list(alike))
        while left:
            low = None if lowest is None else lowest[token : token + left * count].reshape(left, count)
            together = low is None or bool((low == low[:1]).all())
            part = min(left, max(1, BATCH_BYTES // (length * len(keys) * keys.shape[2] * 4))) if together else 1
            mine, theirs = slice(token, token + part * count), slice(key, key + part * length)
            found = _attend_keys(
                q[mine].reshape(part, count, *q.shape[1:]),
                keys[:, theirs].reshape(len(keys), part, length, -1).transpose(0, 1),
                values[:, theirs].reshape(len(values), part, length, -1).transpose(0, 1),
                positions,
                first,
                None if low is None else low[0],
                scaling,
                softcap,
            )
            out[mine], lse[mine] = (x.flatten(0, 1) for x in found)
            token, key, left = token + part * count, key + part * length, left - part
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
        group.put(out, 0.0)
        group.put(lse, -math.inf)
        return
    block_bytes = _block_bytes(k_arena, v_arena, q.dtype)
    blocks_at_once = max(1, PIECE_BYTES // block_bytes)
    spans_at_once = BATCH_BYTES // (len(needed) * block_bytes)
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
            keys, values = (_gathered(arena, ids, q.dtype)[:, :, inside] for arena in (k_arena, v_arena))
            more = _attend_keys(part.take(q), keys, values, positions[inside], part.first, low, scaling, softcap)
            found = more if found is None else merge([found, more])
        if found is not None:
            part.put(out, found[0])
            part.put(lse, found[1])


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
    fused = softcap is None and _can_fuse(q, keys, values)
    dv = values.shape[3]
    if fused:
        # the kernel knows heads of one size only; zeros in the smaller change nothing
        size = max(q.shape[3], dv)
        q, keys, values = (x if x.shape[3] == size else F.pad(x, (0, size - x.shape[3])) for x in (q, keys, values))
    own = torch.arange(first, first + count, device=q.device)
    ends = torch.searchsorted(positions, own, right=True).tolist()
    begins = [0] * count if lowest is None else torch.searchsorted(positions, lowest).tolist()
    at_once = FUSED_QUERIES if fused else max(1, SCORE_BYTES // (4 * spans * heads * max(length, 1)))
    parts: list[Result] = []
    for start in range(0, count, at_once):
        mine = slice(start, min(start + at_once, count))
        # keys before and behind what these queries see are left out
        seen = slice(min(begins[mine]), max(ends[mine]))
        allowed = positions[seen] <= own[mine, None]
        if lowest is not None:
            allowed &= positions[seen] >= lowest[mine, None]
        queries, keys_seen, values_seen = q[:, mine], keys[:, :, seen], values[:, :, seen]
        if fused and allowed.numel():
            found, total = _fused(queries, keys_seen, values_seen, allowed, scaling)
            parts.append((found[..., :dv], total))
            continue
        # (S, kv_heads, G · N, dk): the heads that share a key go through one product
        together = queries.reshape(spans, -1, kv_heads, heads // kv_heads, q.shape[3]).permute(0, 2, 3, 1, 4)
        scores = together.flatten(2, 3) @ keys_seen.mT
        mask = allowed.repeat(together.shape[2], 1)
        found, total = _softmax(scores, mask, values_seen[..., :dv], scaling, softcap)
        found, total = (x.reshape(*together.shape[:4], *x.shape[3:]) for x in (found, total))
        parts.append((found.permute(0, 3, 1, 2, 4).flatten(2, 3), total.permute(0, 3, 1, 2).flatten(2, 3)))
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)


def _can_fuse(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether torch's CPU kernel applies; before 2.9 it did not know heads that share keys and read past their end."""
    alike = q.shape[3] == values.shape[3]
    worth_padding = q.shape[1] >= 16  # a copy of all values or keys, against their use by so many queries
    shared = q.shape[2] != keys.shape[1]
    known = not shared or TorchVersion(torch.__version__) >= TorchVersion("2.9")
    return q.device.type == "cpu" and known and (alike or worth_padding)


def _fused(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor, scaling: float) -> Result:
    """``_softmax`` in one kernel, for queries (S, N, heads, dk) where (N, L) is ``allowed``.

    The operator beneath ``scaled_dot_product_attention`` is called because it tells the log-sum-exp.
    """
    mask = torch.zeros(allowed.shape, dtype=q.dtype).masked_fill_(~allowed, -math.inf)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = fused(q.transpose(1, 2), keys, values, attn_mask=mask, scale=scaling)
    out, lse = out.transpose(1, 2), lse.transpose(1, 2)
    blind = ~allowed.any(1)
    if bool(blind.any()):  # what the kernel gives a query without any key varies
        out, lse = out.masked_fill(blind[:, None, None], 0), lse.masked_fill(blind[:, None], -math.inf)
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
    heads, block_tokens, dim = arena.shape[1:]
    joined = torch.empty((len(blocks), heads, blocks.shape[1], block_tokens, dim), dtype=dtype, device=arena.device)
    joined.copy_(arena.index_select(0, blocks.flatten()).reshape(*blocks.shape, *arena.shape[1:]).transpose(1, 2))
    return joined.flatten(2, 3)


def _block_bytes(k_arena: torch.Tensor, v_arena: torch.Tensor, dtype: torch.dtype) -> int:
    return k_arena.shape[1] * k_arena.shape[2] * (k_arena.shape[3] + v_arena.shape[3]) * dtype.itemsize
