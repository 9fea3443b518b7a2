"""Attention of a call's rows wherever their keys lie: each part where it is, then merged, the sinks added once."""

import torch

from penstock.engine.attention import attend_blocks
from penstock.engine.call import Call
from penstock.engine.call_tables import CallTables
from penstock.engine.dense_attention import Result, finish, merge_at
from penstock.engine.kv_batch import KVBatch
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
    if call.host is not None:
        return call.host.attend(call, layer, q, lowest, scaling, softcap, sinks)
    kv = call.batch.kv
    if kv.reach.beside is None:
        return attend_here(kv, layer, q, lowest, scaling, softcap, sinks)
    asked = kv.reach.beside.ask(layer, kv.away(layer), q, lowest, scaling, softcap)
    found = _newest(kv, layer, q, lowest, scaling, softcap)
    if asked:
        call.wait_for(asked)
        for answer in asked:
            merge_at(found, answer.tokens, answer.take())
    out, _ = finish(*found, sinks)
    return out.to(q.dtype)


def attend_here(
    kv: KVBatch,
    layer: int,
    q: torch.Tensor,
    lowest: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same where new keys are written, and all others come to."""
    found = _newest(kv, layer, q, lowest, scaling, softcap)
    for portion in kv.away(layer):
        low = None if lowest is None else portion.mine(lowest).to(q.device)
        with portion.arenas(layer) as arenas:
            more = attend_blocks(portion.mine(q), *arenas, portion.tables, low, scaling, softcap)
        merge_at(found, portion.tokens, more)
    out, _ = finish(*found, sinks)
    return out.to(q.dtype)


def _newest(
    kv: KVBatch, layer: int, q: torch.Tensor, lowest: torch.Tensor | None, scaling: float, softcap: float | None
) -> Result:
    """What lies where new keys are written."""
    low = None if lowest is None else lowest.to(q.device)
    tables, arenas = kv.here(layer), kv.store.arenas(layer)
    if isinstance(tables, CallTables):
        return attend_blocks(q, *arenas, tables, low, scaling, softcap)
    return attend_packed(q, arenas, kv.store.opened(layer), tables, layer, low, scaling, softcap)
