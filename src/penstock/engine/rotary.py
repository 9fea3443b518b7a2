"""Rotary tables whose frequencies depend on length, asked for span by span.

transformers takes such frequencies by the largest position of the whole call and remembers them across calls; in a flat
call, rows of very different lengths share one call. Each span is asked for alone, from a fresh state.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from penstock.engine.call import current_call

_BY_LENGTH = ("dynamic", "longrope")


def depends_on_length(module: nn.Module) -> bool:
    """Whether a rotary module's frequencies change with the length of the sequence."""
    return any(kind in str(getattr(module, "rope_type", "")) for kind in _BY_LENGTH)


def longrope_switch(config: Any) -> int | None:
    """The length at which a longrope model changes its frequencies; a row that crosses it is recomputed."""
    nested = _parameters(config)
    if not any(p.get("rope_type", p.get("type")) == "longrope" for p in nested):
        return None
    original = [p.get("original_max_position_embeddings") for p in nested]
    original += [getattr(config, "original_max_position_embeddings", None)]
    found = [int(o) for o in original if o]
    return min(found) if found else None


def regime(config: Any, prompt_tokens: int, longest: int) -> str | None:
    """Which frequencies turn the keys of a prompt of so many tokens: prompts of one regime may share KV.

    longest: tokens that the row may come to. None where frequencies change with every token: dynamic scaling beyond
    the original length, which a row may be past when its prompt is computed again.
    """
    switch = longrope_switch(config)
    if switch is not None:
        return "long" if prompt_tokens > switch else "short"
    dynamic = any(p.get("rope_type", p.get("type")) == "dynamic" for p in _parameters(config))
    return None if dynamic and longest > int(config.max_position_embeddings) else ""


def stretch(config: Any) -> float:
    """By how much dynamic rotary scaling lengthens the context beyond ``max_position_embeddings``."""
    factors = [p.get("factor", 1.0) for p in _parameters(config) if p.get("rope_type", p.get("type")) == "dynamic"]
    return max([1.0, *(float(factor) for factor in factors if factor)])


def _parameters(config: Any) -> list[dict[str, Any]]:
    """A config's rotary parameters, one set per layer type where they differ."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [p for p in parameters.values() if isinstance(p, dict)] or [parameters]


def take_by_span(model: nn.Module) -> None:
    """Replace the forward of every length-dependent rotary module, once, with one that goes span by span."""
    for module in model.modules():
        if depends_on_length(module) and "forward" not in vars(module):
            module.forward = _by_span(module, module.forward)


def _by_span(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    buffers = {name: buffer.clone() for name, buffer in module._buffers.items() if buffer is not None}
    marks = {name: value for name, value in vars(module).items() if name.endswith("max_seq_len_cached")}

    def reset() -> None:
        for name, buffer in buffers.items():
            setattr(module, name, buffer.clone())
        for name, value in marks.items():
            setattr(module, name, value)

    def by_span(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        batch = current_call().batch
        parts, at = [], 0
        for span, length in zip(batch.spans, batch.lengths, strict=True):
            reset()
            last = position_ids.new_full((*position_ids.shape[:-1], 1), length - 1)
            asked = torch.cat([position_ids[..., at : at + span.count], last], -1)
            parts.append([table[..., :-1, :] for table in _as_tuple(forward(x, asked, *args, **kwargs))])
            at += span.count
        joined = tuple(torch.cat(tables, -2) for tables in zip(*parts, strict=True))
        return joined if len(joined) > 1 else joined[0]

    return by_span


def _as_tuple(tables: Any) -> tuple[torch.Tensor, ...]:
    return tables if isinstance(tables, tuple) else (tables,)
