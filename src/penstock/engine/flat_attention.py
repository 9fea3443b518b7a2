"""The attention function that transformers calls: each span attends to its own row's keys only."""

from typing import Any

import torch
from transformers import AttentionInterface

from penstock.engine.call import current_call
from penstock.engine.dense_attention import attend_dense
from penstock.engine.masks import Predicate
from penstock.engine.placed_attention import attend_placed

NAME = "penstock"

# Arguments that change nothing for inference, or that the mask's predicate says already.
_HARMLESS = {
    *("dropout", "training", "deterministic", "is_causal", "sliding_window", "layer_idx", "head_mask"),
    *("position_ids", "cache_position", "position_embeddings", "past_key_values", "use_cache", "logits_to_keep"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "num_items_in_batch"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
}


class UnknownArgument(RuntimeError):
    """An attention argument whose meaning is not known here: refused rather than ignored."""


def flat_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, heads, T, dim), key and value as ``FlatCache.update`` returned them, possibly transformed since.

    Returns (1, T, heads, value dim). Raises UnknownArgument and NotARange instead of guessing.
    """
    if query.is_meta:
        return query.new_empty((1, query.shape[2], query.shape[1], value.shape[-1])), None
    unknown = {n for n, v in kwargs.items() if v is not None and v is not False and n not in _HARMLESS}
    if unknown:
        raise UnknownArgument(f"attention with {', '.join(sorted(unknown))}")
    if attention_mask is not None and not isinstance(attention_mask, Predicate):
        raise UnknownArgument("attention with a mask that was made elsewhere")
    call = current_call()
    batch, kv = call.batch, call.batch.kv
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    lowest_T = attention_mask.lowest(batch) if attention_mask is not None else None
    q_THD = query[0].transpose(0, 1)
    layer = kv.layer_of(key)
    if layer is None:
        lengths, spans = kv.dense_lengths(key), [(s.first, s.count) for s in batch.spans]
        low = None if lowest_T is None else lowest_T.to(query.device)
        out, _ = attend_dense(q_THD, key[0], value[0], spans, lengths, low, scale, softcap, s_aux)
        return out[None], None
    return attend_placed(call, layer, q_THD, lowest_T, scale, softcap, s_aux)[None], None


AttentionInterface.register(NAME, flat_attention)
