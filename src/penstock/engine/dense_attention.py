"""Attention over keys that lie in one tensor, and how parts of it become the whole.

All masks are ranges: query t sees the keys from ``lowest[t]`` to its own position. Shapes: T tokens of the call,
S spans computed together, N queries, L keys, G query heads of one kv head.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch.torch_version import TorchVersion

BATCH_BYTES = 4 << 20  # keys and values of spans computed together: they stay in cache, and in the heap
SCORE_BYTES = 4 << 20  # scores held at a time; less stays in cache, more makes longer products
FUSED_QUERIES = 256  # per call of the fused kernel, which computes the masked scores too

Result = tuple[torch.Tensor, torch.Tensor]


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
    """As ``attention.attend``, over the keys of all rows, concatenated in the order of spans.

    keys (kv_heads, sum of lengths, dk), values likewise. Row i owns ``lengths[i]`` of them, which end at its last
    position.
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
            found = attend_keys(
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


def merge_at(found: Result, tokens: torch.Tensor, more: Result) -> None:
    """Add to what was found for a call's tokens what some of them (n,) find in further keys."""
    out, lse = found
    out[tokens], lse[tokens] = merge([(out[tokens], lse[tokens]), more])


def finish(out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor | None) -> Result:
    """Add the sinks, once, to what all keys together gave."""
    if sinks is None:
        return out, lse
    scores = sinks.to(lse.dtype)
    return out * torch.sigmoid(lse - scores)[..., None], torch.logaddexp(lse, scores.expand_as(lse))


def attend_keys(
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
        found, total = softmax(scores, mask, values_seen[..., :dv], scaling, softcap)
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
    """``softmax`` in one kernel, for queries (S, N, heads, dk) where (N, L) is ``allowed``.

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


def softmax(
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
