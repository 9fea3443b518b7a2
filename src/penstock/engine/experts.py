"""Expert weights by groups: the stacked tensors never exist whole.

Registered with transformers' experts interface; a call asks for each group of experts that its tokens chose, in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from penstock.engine.call import current_call
from penstock.quant.packed import Packed

NAME = "penstock"


@dataclass(frozen=True, slots=True)
class ExpertGroup:
    """Experts [start, stop) of one module, held by one page; ``params`` maps its attributes to parameters."""

    page: int
    start: int
    stop: int
    params: Mapping[str, str]


def use_groups(module: nn.Module, groups: Sequence[ExpertGroup]) -> None:
    """Tell an experts module where its groups' pages are."""
    module.penstock_groups = tuple(groups)  # type: ignore[assignment]  # a plain attribute, no parameter


def paged_experts(
    module: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, *args: Any
) -> torch.Tensor:
    """hidden (T, dim), chosen and weights (T, k): the weighted sum over each token's experts, summed in float32."""
    if hidden.is_meta:
        return torch.empty_like(hidden)
    out = torch.zeros_like(hidden, dtype=torch.float32)
    used = set(chosen.flatten().tolist())
    for group in module.penstock_groups:
        mine = [expert for expert in range(group.start, group.stop) if expert in used]
        if not mine:
            continue
        views = current_call().hold(group.page)
        stacked = {name: views[param, group.start] for name, param in group.params.items()}
        for expert in mine:
            tensors = {name: stack[expert - group.start] for name, stack in stacked.items()}
            small = {
                n: p[expert]
                for n, p in module._parameters.items()
                if n not in tensors and p is not None and p.dim() > 1
            }
            token, place = torch.where(chosen == expert)
            y = _expert(module, hidden[token], {**tensors, **small})
            out.index_add_(0, token, (y * weights[token, place, None]).float())
    return out.to(hidden.dtype)


def _expert(module: Any, x: torch.Tensor, tensors: Mapping[str, Any]) -> torch.Tensor:
    """One expert on its tokens, by the flags that transformers' decorator left on the module."""
    widening = current_call().widening

    def product(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = tensors[name]
        y: torch.Tensor
        if module.is_transposed and not isinstance(weight, Packed):
            y = x @ weight.to(x.dtype)
        else:  # packed experts are (out, in), whichever way their module has them
            y = widening.linear(x, weight, None)
        return y + tensors[name + "_bias"].to(x.dtype) if module.has_bias else y

    up = "gate_up_proj" if module.has_gate else "up_proj"
    y = product(x, up)
    y = product(module._apply_gate(y) if module.has_gate else module.act_fn(y), "down_proj")
    return module.post_expert_norm(y) if getattr(module, "has_post_expert_norm", False) else y


ALL_EXPERTS_FUNCTIONS.register(NAME, paged_experts)
