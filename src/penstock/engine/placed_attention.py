"""Attention of a call's rows wherever their keys lie: each part where it is, then merged, the sinks added once."""

import torch

from penstock.engine.attention import attend_blocks
from penstock.engine.call import Call
from penstock.engine.call_tables import CallTables
from penstock.engine.dense_attention import Result, finish, merge_at
from penstock.engine.packed_attention import attend_packed


def attend_placed(
    call: Call,
    layer: int,
    q: torch.Tensor,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Out (T, heads, dv) in q's dtype, of a layer whose new keys are written; arguments as ``attention.attend`` takes
    them, lowest on the host.

    What the cpu attends to beside the compute device is asked for first, and the call stops until it is there.
    """
    kv = call.batch.kv
    away, beside = kv.away(layer), kv.reach.beside
    asked = [] if beside is None else beside.ask(layer, away, q, lowest, scaling, softcap)
    found = _here(call, layer, q, None if lowest is None else lowest.to(q.device), scaling, softcap)
    if beside is None:
        for portion in away:
            low = None if lowest is None else portion.mine(lowest).to(q.device)
            with portion.arenas(layer) as arenas:
                more = attend_blocks(portion.mine(q), *arenas, portion.tables, low, scaling, softcap)
            merge_at(found, portion.tokens, more)
    elif asked:
        call.wait_for(asked)
        for answer in asked:
            merge_at(found, answer.tokens, answer.take())
    out, _ = finish(*found, sinks)
    return out.to(q.dtype)


def _here(
    call: Call, layer: int, q: torch.Tensor, lowest: torch.Tensor | None, scaling: float, softcap: float | None
) -> Result:
    """What lies on the compute tier."""
    kv = call.batch.kv
    tables, arenas = kv.here(layer), kv.store.arenas(layer)
    if isinstance(tables, CallTables):
        return attend_blocks(q, *arenas, tables, lowest, scaling, softcap)
    opened = kv.store.opened(layer)
    return attend_packed(q, arenas, opened, tables, layer, lowest, scaling, softcap)
