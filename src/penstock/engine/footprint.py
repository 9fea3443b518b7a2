"""What a model takes, as the placement rule counts it, read off its blueprint."""

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import nn

from penstock.model.layout import decoder_layers, layer_list
from penstock.plan.types import Footprint

if TYPE_CHECKING:
    from penstock.engine.build import Blueprint

_CALL, _WIDENED_CALL = 1024, 256  # tokens


def footprint_of(plan: "Blueprint") -> Footprint:
    """The footprint of a blueprint's model, in the precision that it runs in."""
    pages = plan.layout.pages
    tables = frozenset(p.index for p in pages if p.kind == "embedding")
    item = plan.precision.compute.itemsize
    by_name = dict(plan.skeleton.named_parameters(remove_duplicate=False))
    core = sum(p.numel() * p.element_size() for p in (by_name[name] for name in plan.layout.core))
    layers = [layer for group in plan.groups for layer in group.layers.values()]
    heads = int(getattr(plan.config, "num_attention_heads", 0) or 0)
    return Footprint(
        pages=[page.nbytes for page in pages],
        tables=tables,
        core=core,
        call_bytes=_call_bytes(plan, item),
        logit_bytes=2 * item * int(getattr(plan.config, "vocab_size", 0)),
        kv_block=sum(spec.block_bytes for spec in plan.specs),
        block_tokens=plan.kv.tokens,
        open_block=sum(layer.open_bytes(plan.kv) for layer in layers),
        state=sum(plan.anatomy.recurrent.values()),
        state_layer=max(plan.anatomy.recurrent.values(), default=0),
        staged_layer=max((layer.block_bytes(plan.kv) for layer in layers), default=0),
        call_tokens=_call_tokens(plan),
        query_bytes=heads * max((la.k_dim for la in layers), default=0) * item,
        answer_bytes=heads * max((la.v_dim + 1 for la in layers), default=0) * 4,  # float32, to be merged
        key_bytes=max((la.k_heads * la.k_dim + la.v_heads * la.v_dim for la in layers), default=0) * item,
        found_bytes=heads * max((la.v_dim for la in layers), default=0) * item,
        transforms=bool(dense_layers(plan.skeleton)),
        layers=[page.layer for page in pages],
        joined=_joined(plan),
    )


def dense_layers(skeleton: nn.Module) -> frozenset[int]:
    """Cache layers whose module transforms all cached keys before attending."""
    modules = [m for m in skeleton.modules() if hasattr(m, "expand_kv")]
    return frozenset(m.layer_idx for m in modules if isinstance(getattr(m, "layer_idx", None), int))  # type: ignore[misc]  # modules are untyped


def _joined(plan: "Blueprint") -> str | None:
    """Why a model's decoder layers cannot be computed on two processors; None where they can."""
    if plan.anatomy.recurrent:
        return "this model keeps recurrent state where its layers are computed"
    if set(plan.anatomy.kv) != set(range(len(decoder_layers(plan.skeleton)))):
        return "layers of this model share keys and values, or keep none"
    prefix = f"{layer_list(plan.skeleton)}."
    within: defaultdict[int, set[str]] = defaultdict(set)
    for name, parameter in plan.skeleton.named_parameters(remove_duplicate=False):
        layer = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else ""
        within[id(parameter)].add(layer)
    if any(len(layers) > 1 for layers in within.values() if layers != {""}):
        return "layers of this model share weights"
    return None


def _call_tokens(plan: "Blueprint") -> int:
    """Tokens of a call from which on products are no faster: fewer where a kernel widens weights as it multiplies.

    Shorter calls leave smaller tensors, which memory of the last ones serves. Experts see few tokens of each call.
    """
    packing = plan.precision.packing
    narrow = plan.precision.stored != plan.precision.compute or packing.weights is not None or packing.own
    widens = narrow and plan.precision.compute == torch.float32 and not plan.layout.experts
    return _WIDENED_CALL if widens else _CALL


def _call_bytes(plan: "Blueprint", item: int) -> int:
    """Bytes per token of a call: its residual stream a few times, and the widest run of outputs in a layer."""
    hidden = int(plan.config.hidden_size)
    widths: dict[tuple[int | None, str], int] = {}
    for page in plan.layout.pages:
        if page.kind not in ("layer", "experts"):
            continue
        child = page.name.split("[")[0]
        # every expert's rows are outputs of few tokens: an expert group counts as two experts
        rows = [2 * s.shape[-2] if page.kind == "experts" else s.shape[0] for s in page.slices]
        widths[page.layer, child] = widths.get((page.layer, child), 0) * (page.kind == "layer") + sum(rows)
    bytes_ = item * (8 * hidden + 1.4 * max(widths.values(), default=4 * hidden))
    return int(bytes_ + _open_span_bytes(plan, item))


def _open_span_bytes(plan: "Blueprint", item: int) -> int:
    """Bytes per token of a prompt whose full blocks are packed: its own keys and values of two layers, which others
    may read too, and a copy of one layer's in compute dtype."""
    if plan.kv.packed is None:
        return 0
    widths = (la.k_heads * la.k_dim + la.v_heads * la.v_dim for g in plan.groups for la in g.layers.values())
    return max(widths, default=0) * (2 * plan.kv.dtype.itemsize + item)
