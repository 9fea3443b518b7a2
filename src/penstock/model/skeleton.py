"""The model's own code on the meta device: transformers' modules with no weights behind them."""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from penstock.errors import UserError, first_line

_WARNS = "warn_if_padding_and_no_attention_mask"
# What models raise whose config does not make sense; RuntimeError has NotImplementedError in it.
UNBUILDABLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, ImportError)


def build_skeleton(config: Any, dtype: torch.dtype, *, trust_remote_code: bool = False) -> nn.Module:
    """A causal LM of transformers on the meta device, weights tied as the config says, in eval mode.

    dtype: what its parameters claim to be (the compute dtype). Raises UserError where transformers has no such model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            # a copy: what is set on the skeleton's config must not reach other models made from it
            own = copy.deepcopy(config)
            model: Any = AutoModelForCausalLM.from_config(own, dtype=dtype, trust_remote_code=trust_remote_code)
    except ZeroDivisionError as error:  # families divide by heads and widths as they please
        raise UserError(
            f"a size in its config is 0, which {config.model_type} models cannot be built with: "
            "look at hidden_size, the numbers of heads and the widths of MLPs"
        ) from error
    except UNBUILDABLE as error:
        raise UserError(
            f"{config.model_type} models cannot be built by this transformers: {first_line(error)}"
        ) from error
    model.eval()
    model.tie_weights()
    for part in model.modules():
        if hasattr(part, _WARNS):  # it reads ids, which meta tensors do not have; and nothing is padded here
            vars(part)[_WARNS] = lambda input_ids, attention_mask: None
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{config.model_type} models are refused: their forward does not take logits_to_keep")
    return model  # type: ignore[no-any-return]  # transformers is untyped here


def materialise_buffers(model: Any, device: torch.device) -> None:
    """Give every non-persistent buffer (rotary tables, scales) its value, by transformers' own ``_init_weights``.

    Before any parameter is loaded: those of the modules touched are initialised too, which is without effect on meta.
    Raises UserError, naming them, where a buffer is left without a value.
    """
    touched: list[tuple[nn.Module, str]] = []
    for module, owner in _owned(model, model):
        absent = [n for n, b in module._buffers.items() if b is not None and b.is_meta]
        absent = [n for n in absent if n in module._non_persistent_buffers_set]
        for name in absent:
            buffer = module._buffers[name]
            assert buffer is not None  # filtered above; said again for the type checker
            # NaN shows afterwards which buffers nobody gave a value to.
            filler = float("nan") if buffer.is_floating_point() else -1
            module._buffers[name] = torch.full(buffer.shape, filler, dtype=buffer.dtype, device=device)
            touched.append((module, name))
        if absent:
            with torch.no_grad():
                owner._init_weights(module)  # its parameters are on meta, where this does no harm
    for module, name in touched:
        if _unset(module._buffers[name]):
            _init_around(model, module)
    left = [name for module, name in touched if _unset(module._buffers[name])]
    if left:
        raise UserError(
            f"{model.config.model_type} models are refused: buffers {', '.join(sorted(set(left))[:3])} have no value"
        )


def _init_around(model: Any, inner: nn.Module) -> None:
    """Initialise the modules that a module lies in: some families give their layers' buffers a value from there."""
    for outer in model.modules():
        if outer is not inner and any(module is inner for module in outer.modules()):
            with torch.no_grad():
                model._init_weights(outer)


def _owned(module: nn.Module, owner: Any) -> Iterator[tuple[nn.Module, Any]]:
    """Every module once, with the innermost model around it: it is the one that knows how to initialise it."""
    owner = module if hasattr(module, "_init_weights") else owner
    yield module, owner
    for child in module.children():
        yield from _owned(child, owner)


def _unset(buffer: torch.Tensor | None) -> bool:
    if buffer is None or buffer.numel() == 0:
        return False
    if buffer.is_floating_point():
        return bool(buffer.isnan().any())
    return bool((buffer == -1).all())


def decoder_config(config: Any) -> Any:
    """The text decoder's part of a config."""
    return config.get_text_config(decoder=True)
