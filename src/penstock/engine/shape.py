"""What the planner needs to know of a model, read off its blueprint: nothing here is a formula per family."""

import math
from collections import Counter
from typing import Any

import torch

from penstock.engine.build import Blueprint
from penstock.model.pages import Page, Slice
from penstock.model.precision import Precision
from penstock.plan.shape import AttentionShape, ModelShape, PageShape
from penstock.plan.traffic import traffic_bytes
from penstock.quant.forms import Form, named
from penstock.quant.grouped import BITS

# What configs call the experts that a token is sent to.
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k", "top_k")


def model_shape(plan: Blueprint) -> ModelShape:
    """The shape of a blueprint's model, in the precision that it runs in."""
    config = plan.config
    experts = max((stack.shape[0] for stack in _stacked(plan)), default=0)
    chosen = min(experts, next((int(n) for a in _CHOSEN if (n := getattr(config, a, None))), experts))
    pages = [_page(page) for page in plan.layout.pages]
    attention = _attention(plan)
    item = plan.precision.compute.itemsize
    hidden = int(config.hidden_size)
    layers = sorted({page.layer for page in plan.layout.pages if page.layer is not None})
    widths = [(_attention_width(plan, layer), _inner_width(plan, layer, chosen)) for layer in layers]
    between = sum(traffic_bytes(hidden, attends, inner, item) for attends, inner in widths)
    return ModelShape(
        name=plan.source.name,
        arithmetic=_arithmetic(plan),
        pages=pages,
        attention=attention,
        hidden_bytes=hidden * item,
        traffic_bytes=between,
        vocabulary=int(getattr(config, "vocab_size", 0)),
        footprint=plan.footprint(),
        experts=experts,
        experts_chosen=chosen,
        weight_bits=_weight_bits(plan),
        operator_bytes=item * (hidden + max((width for both in widths for width in both), default=hidden)),
        heads=int(getattr(config, "num_attention_heads", 0) or 0),
    )


def arithmetic(precision: Precision) -> str:
    """The name of a precision's products with weights that are not packed, as ``Processor.products`` has it."""
    stored, compute = _name(precision.stored), _name(precision.compute)
    return compute if stored == compute else f"{compute}<{stored}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _arithmetic(plan: Blueprint) -> str:
    """The name of the products of a model's layers: with packed weights it tells their bits."""
    form = _layer_form(plan)
    if form is None:
        return arithmetic(plan.precision)
    measured = next(bits for bits in BITS if bits >= form.bits)  # profiles know these; others take about as long
    return f"{_name(plan.precision.compute)}<int{measured}"


def _weight_bits(plan: Blueprint) -> float:
    """Of a weight in a layer, with its part of what its group shares."""
    form = _layer_form(plan)
    return 8.0 * plan.precision.stored.itemsize if form is None else 8.0 * form.record_bytes / form.group


def _layer_form(plan: Blueprint) -> Form | None:
    """How most of the layers' bytes are packed; None where most are of a dtype."""
    kinds: Counter[str] = Counter()
    for page in plan.layout.pages:
        if page.layer is not None:
            for piece in page.slices:
                kinds[piece.dtype] += piece.nbytes
    return named(kinds.most_common(1)[0][0]) if kinds else None


def _stacked(plan: Blueprint) -> list[Any]:
    """Parameters of which pages hold groups of experts, whole."""
    wanted = {s.param for page in plan.layout.pages if page.kind == "experts" for s in page.slices}
    return [p for name, p in plan.skeleton.named_parameters(remove_duplicate=False) if name in wanted]


def _page(page: Page) -> PageShape:
    experts = max((s.shape[0] for s in page.slices), default=0) if page.kind == "experts" else 0
    return PageShape(
        nbytes=page.nbytes,
        weights=sum(math.prod(s.shape) for s in page.slices),
        layer=page.layer,
        experts=experts,
        samples_only=page.kind == "head",
        table=page.kind == "embedding",
        matrices=len(page.slices) * max(1, experts),
    )


def _attention(plan: Blueprint) -> list[AttentionShape]:
    """Cache layers with the page that a call holds while each attends: the first of its decoder layer."""
    first: dict[int, int] = {}
    for page in plan.layout.pages:
        if page.layer is not None:
            first.setdefault(page.layer, page.index)
    order = [first[layer] for layer in sorted(first)] or [0]
    heads = int(getattr(plan.config, "num_attention_heads", 0) or 0)
    found = []
    for index, layer in sorted(plan.anatomy.kv.items()):
        wide = max(heads, layer.k_heads) * (layer.k_dim + layer.v_dim)
        found.append(
            AttentionShape(
                kv_bytes=layer.block_bytes(plan.kv) // plan.kv.tokens,
                pair_flops=2 * wide,
                window=plan.anatomy.windows.get(index),
                page=order[min(index, len(order) - 1)],
                packed_elements=layer.k_heads * layer.k_dim + layer.v_heads * layer.v_dim if plan.kv.packed else 0,
            )
        )
    return found


def _slices(plan: Blueprint, layer: int, kind: str) -> list[Slice]:
    return [s for page in plan.layout.pages if page.layer == layer and page.kind == kind for s in page.slices]


def _attention_width(plan: Blueprint, layer: int) -> int:
    """Outputs of the queries', keys' and values' products of a layer, from what it writes to its cache."""
    kv = plan.anatomy.kv.get(layer)
    if kv is None:
        return 0
    heads = int(getattr(plan.config, "num_attention_heads", 0) or kv.k_heads)
    return max(heads, kv.k_heads) * kv.k_dim + kv.k_heads * kv.k_dim + kv.v_heads * kv.v_dim


def _inner_width(plan: Blueprint, layer: int, chosen: int) -> int:
    """Values that pass the activation function of a layer, per token: the widest input of its linear layers."""
    hidden = int(plan.config.hidden_size)
    inner = [s.shape[-1] for s in _slices(plan, layer, "layer") if len(s.shape) == 2 and s.shape[-1] != hidden]
    routed = [min(s.shape[-2:]) for s in _slices(plan, layer, "experts") if len(s.shape) == 3]
    return max(inner, default=0) + chosen * min(routed, default=0)
