"""Tying a skeleton's modules to pages: each asks for its page when it runs, and finds its weights there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from penstock.engine.call import Views, current_call
from penstock.engine.experts import ExpertGroup, use_groups
from penstock.engine.linear import ChunkedLinear, RowChunk
from penstock.model.layout import Layout
from penstock.quant.packed import Packed


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A weight of a module; skeleton: what stands there while no page is held."""

    module: nn.Module
    attribute: str
    key: tuple[str, int]
    skeleton: torch.Tensor | None


class Binding:
    """Sets and takes back the weights of the modules that a page serves.

    Between pages a module's weight is its meta skeleton again, so that a stale use raises instead of reading a slot
    that holds something else by now. A module's forward is replaced once: pages have the same numbers in every engine
    that is built on the skeleton.
    """

    def __init__(self, model: nn.Module, layout: Layout, compute: torch.dtype) -> None:
        self.compute = compute
        self._leaves: dict[int, list[_Leaf]] = {}
        experts = {param for names in layout.experts.values() for param in names.values()}
        for name, names in layout.experts.items():
            self._bind_experts(model.get_submodule(name), names, layout)
        for param in sorted({s.param for p in layout.pages for s in p.slices} - experts):
            where = layout.where(param)
            for name in layout.names[param]:
                owner, _, attribute = name.rpartition(".")
                module = model.get_submodule(owner)
                if isinstance(module, nn.Embedding):
                    continue  # a table of rows: bound elsewhere, once
                if len(where) > 1:
                    chunks = [RowChunk(page.index, part.start, part.stop) for page, part in where]
                    assert isinstance(module, nn.Linear)  # only linear layers are cut
                    vars(module).setdefault("forward", ChunkedLinear(module, param, chunks))
                else:
                    self._bind_leaf(module, attribute, where[0][0].index, (param, where[0][1].start))

    def _bind_experts(self, module: nn.Module, names: Mapping[str, str], layout: Layout) -> None:
        groups: dict[int, tuple[int, int]] = {}
        for param in names.values():
            groups |= {page.index: (part.start, part.stop) for page, part in layout.where(param)}
        parts = [ExpertGroup(page, *span, dict(names)) for page, span in sorted(groups.items())]
        use_groups(module, parts)

    def _bind_leaf(self, module: nn.Module, attribute: str, page: int, key: tuple[str, int]) -> None:
        self._leaves.setdefault(page, []).append(_Leaf(module, attribute, key, module._parameters[attribute]))
        if "forward" in vars(module):
            return  # it asks for its page already: for another matrix, or since an earlier engine
        vars(module)["forward"] = _holding(module, page)

    def bind(self, page: int, views: Views) -> None:
        """Give the modules of a page their weights; those that cannot take a stored dtype get a widened copy."""
        for leaf in self._leaves.get(page, ()):
            view = views[leaf.key]
            if not _widens_itself(leaf.module):
                view = view.wide(self.compute) if isinstance(view, Packed) else view.to(self.compute)
            leaf.module._parameters[leaf.attribute] = view  # type: ignore[assignment]  # a view of a slot, no Parameter

    def unbind(self, page: int) -> None:
        """Take the weights of a page back."""
        for leaf in self._leaves.get(page, ()):
            leaf.module._parameters[leaf.attribute] = leaf.skeleton  # type: ignore[assignment]  # mypy knows Parameters


def _widens_itself(module: nn.Module) -> bool:
    return type(module) is nn.Linear


def _holding(module: Any, page: int) -> Callable[..., Any]:
    """The module's forward, preceded by asking for its page."""
    inner = module.forward
    if _widens_itself(module):

        def linear(x: torch.Tensor) -> torch.Tensor:
            if x.numel() == 0:
                return x.new_empty((*x.shape[:-1], module.out_features))  # no row's logits are wanted: no page is, too
            call = current_call()
            call.hold(page)
            return call.widening.linear(x, module.weight, module.bias)

        return linear

    def held(*args: Any, **kwargs: Any) -> Any:
        current_call().hold(page)
        return inner(*args, **kwargs)

    return held
