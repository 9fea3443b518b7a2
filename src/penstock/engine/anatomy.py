"""What a model does with its parts, seen in one dry run of its skeleton on the meta device.

Nothing about a family is assumed: which matrices run in which order, which layers write KV and of what shape, and which
keep recurrent state, are read off a flat call of a few tokens.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from penstock.engine import experts, flat_attention
from penstock.engine.recurrent import state_bytes
from penstock.engine.rotary import depends_on_length
from penstock.errors import UserError, first_line
from penstock.memory.kv_form import KVLayer

_TOKENS = 3


@dataclass(slots=True)
class Anatomy:
    """What the dry run showed.

    leaves: names of matrix-owning modules in the order they first run. kv: per cache layer, of what the model hands to
    its cache. windows: keys a windowed layer's queries reach back to. recurrent: cache layers with state that is not
    KV, and its bytes per row. recurrent_modules: the outermost modules that read or write such state, and their cache
    layers. cache_name: what the model's forward calls its cache.
    """

    leaves: list[str] = field(default_factory=list)
    kv: dict[int, KVLayer] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)
    recurrent: dict[int, int] = field(default_factory=dict)
    recurrent_modules: dict[str, list[int]] = field(default_factory=dict)
    cache_name: str = "past_key_values"


class _Recorder(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """A cache that notes what is written to it and keeps nothing that attention needs."""

    def __init__(self, config: Any, anatomy: Anatomy, running: list[str]) -> None:
        super().__init__(config=config)
        self.anatomy, self.running = anatomy, running
        self.attending: set[str] = set()

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.anatomy.kv[layer_idx] = KVLayer(keys.shape[1], keys.shape[3], values.shape[1], values.shape[3])
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        self.anatomy.windows[layer_idx] = getattr(layer, "sliding_window", None)
        self.attending.add(self.running[-1])
        return keys, values

    def get_conv_state(self, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self._note(layer_idx)
        return super().get_conv_state(layer_idx, *args, **kwargs)

    def get_recurrent_state(self, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self._note(layer_idx)
        return super().get_recurrent_state(layer_idx, *args, **kwargs)

    def update_conv_state(self, states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self._note(layer_idx)
        return super().update_conv_state(states, layer_idx, *args, **kwargs)

    def update_recurrent_state(self, states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self._note(layer_idx)
        return super().update_recurrent_state(states, layer_idx, *args, **kwargs)

    def _note(self, layer_idx: int) -> None:
        self.anatomy.recurrent.setdefault(layer_idx, 0)
        layers = self.anatomy.recurrent_modules.setdefault(self.running[-1], [])
        if layer_idx not in layers:
            layers.append(layer_idx)

    def conclude(self, model: nn.Module) -> None:
        """Sum up what the dry run left behind: bytes of state per row, and the modules that are called row by row.

        In those, only plain linear layers are paged: the weights of others are used without their forward being called.
        """
        found, modules = self.anatomy, self.anatomy.recurrent_modules
        for index in found.recurrent:
            found.recurrent[index] = state_bytes(self.layers[index])
        for name in [name for name in modules if any(_inside(name, other) for other in modules)]:
            outer = min((other for other in modules if _inside(name, other)), key=len)
            modules[outer] = list(dict.fromkeys(modules[outer] + modules.pop(name)))
        for name in modules:
            if any(name == attends or _inside(attends, name) for attends in self.attending):
                raise ValueError(f"{name or 'the model'} writes keys and recurrent state in one")
        rowwise = {leaf for leaf in found.leaves for name in modules if leaf == name or _inside(leaf, name)}
        found.leaves = [x for x in found.leaves if x not in rowwise or type(model.get_submodule(x)) is nn.Linear]


def _held_by_modules(model: nn.Module) -> set[str]:
    """Tensors that modules hold as plain attributes."""
    return {
        f"{name}.{attribute}"
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    }


def _inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.") if other else bool(name)


def _take_over_experts(model: Any) -> None:
    """What ``set_experts_implementation`` does; in transformers 5.5 that admits none but its own functions."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._experts_implementation = experts.NAME


def dissect(model: Any, config: Any) -> Anatomy:
    """Run a skeleton on meta once and say what it is made of. Raises UserError where it does not run so."""
    anatomy, running = Anatomy(), [""]
    cache = _Recorder(config, anatomy, running)
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        anatomy.cache_name = "cache_params"
    model.set_attn_implementation(flat_attention.NAME)
    _take_over_experts(model)
    held = _held_by_modules(model)
    with _rotary_by_default(model), _watched(model, anatomy, running), torch.inference_mode():
        ids = torch.zeros((1, _TOKENS), dtype=torch.long, device="meta")
        positions = torch.arange(_TOKENS, device="meta")[None]
        wanted = torch.zeros(1, dtype=torch.long, device="meta")
        try:
            given = {anatomy.cache_name: cache, "logits_to_keep": wanted}
            model(input_ids=ids, position_ids=positions, use_cache=True, **given)
            cache.conclude(model)
        except (
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
            ArithmeticError,
            IndexError,
            KeyError,
        ) as error:
            raise UserError(
                f"{config.model_type} models are refused: they do not run as one flat call ({first_line(error)})"
            ) from error
    if not anatomy.kv and not anatomy.recurrent:
        raise UserError(f"{config.model_type} models are refused: they keep their past in a cache of their own kind")
    if kept := sorted(_held_by_modules(model) - held):
        raise UserError(f"{config.model_type} models are refused: they keep state outside of the cache ({kept[0]})")
    return anatomy


@contextmanager
def _watched(model: nn.Module, anatomy: Anatomy, running: list[str]) -> Iterator[None]:
    """Note the order in which modules with matrices run, and which module is running."""
    seen: set[str] = set()
    handles = []
    for name, module in model.named_modules():
        owns = any(p is not None and p.dim() > 1 for p in module._parameters.values())

        def enter(_m: nn.Module, _a: Any, name: str = name, owns: bool = owns) -> None:
            running.append(name)
            if owns and name not in seen:
                seen.add(name)
                anatomy.leaves.append(name)

        def leave(_m: nn.Module, _a: Any, _o: Any) -> None:
            running.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _rotary_by_default(model: nn.Module) -> Iterator[None]:
    """Length-dependent rotary modules read positions, which meta tensors do not have: let them be plain meanwhile."""
    changed = [(m, m.rope_type) for m in model.modules() if depends_on_length(m)]
    for module, kind in changed:
        module.rope_type = dict.fromkeys(kind, "default") if isinstance(kind, dict) else "default"  # type: ignore[assignment]  # modules are untyped
    try:
        yield
    finally:
        for module, kind in changed:
            module.rope_type = kind
