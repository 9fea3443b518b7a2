"""Attention of a call whose rows keep full blocks packed: to the earlier blocks, and to each row's newest one.

Shapes as in ``attention`` and ``open_spans``.
"""

import torch

from penstock.engine.attention import attend_blocks, gathered
from penstock.engine.dense_attention import Result, attend_keys, merge, merge_at
from penstock.engine.open_spans import LongSpans, OpenSpans
from penstock.memory.kv_form import Arenas, Wide


def attend_packed(
    q: torch.Tensor,
    here: Arenas,
    opened: Wide,
    spans: OpenSpans,
    layer: int,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
) -> Result:
    """``attention.attend_blocks`` of a layer whose new keys ``OpenSpans.write`` has written.

    here: packed blocks of the compute tier. opened: open blocks.
    """
    parts = [attend_blocks(q, *opened, spans.newest, lowest, scaling, softcap)]
    if spans.earlier.holds:
        parts.append(attend_blocks(q, *here, spans.earlier, lowest, scaling, softcap))
    found = merge(parts)
    for long, wide in zip(spans.longs, spans.wide[layer], strict=True):
        low = None if lowest is None else lowest[long.tokens]
        merge_at(found, long.tokens, _own(q[long.tokens], here, long, wide, low, scaling, softcap))
    return found


def _own(
    q: torch.Tensor,
    here: Arenas,
    long: LongSpans,
    wide: Wide,
    low: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Result:
    """Queries (S, N, heads, dk) of long spans to the blocks that they begin in and fill.

    Block after block: its queries see it as it is, and then it is put in its place as it was packed.
    """
    if low is not None and not bool((low == low[:1]).all()):
        apart = [slice(at, at + 1) for at in range(len(q))]  # rows at the same positions see different keys
        found = [_own(q[i], here, long.part(i), (wide[0][i], wide[1][i]), low[i], scaling, softcap) for i in apart]
        return torch.cat([out for out, _ in found]), torch.cat([lse for _, lse in found])
    keys, values = (part.to(q.dtype, copy=True) for part in wide)
    positions = torch.arange(long.base, long.first + long.count, device=q.device)
    parts: list[Result] = []
    for block, start, stop in long.by_block():
        first, end = block * long.size, min((block + 1) * long.size, len(positions))
        seen = keys[:, :, :end], values[:, :, :end], positions[:end]
        mine = None if low is None else low[0, start:stop]
        parts.append(attend_keys(q[:, start:stop], *seen, long.first + start, mine, scaling, softcap))
        if stop < long.count:
            ids = long.filled[:, block : block + 1]
            for full, arena in ((keys, here[0]), (values, here[1])):
                full[:, :, first:end] = gathered(arena, ids, q.dtype)
    return torch.cat([out for out, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)
