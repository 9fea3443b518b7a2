"""Observes the attention of one row and notes which cached tokens each decode step could have passed over.

Only an engine that is watched pays for it: its modules are pointed to another attention function, which attends as ever
and then weighs the row's cached keys once more.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from penstock.engine import flat_attention as plain
from penstock.engine import masks
from penstock.engine.call import Batch, current_call
from penstock.engine.engine import Engine
from penstock.engine.skip_rule import Selection
from penstock.errors import UserError
from penstock.trace.skip_trace import WORD_BITS, SkipBits

NAME = "penstock-recorded"

# who watches a call; every greenlet has a context of its own
_WATCHING: ContextVar["SkipRecorder"] = ContextVar("watching")


@dataclass(frozen=True, slots=True)
class Softmax:
    """How one attention module turns scores into weights. sinks (heads,): scores that take weight and give nothing."""

    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    def weights(self, q_HGD: torch.Tensor, k_HLD: torch.Tensor) -> torch.Tensor:
        """Float32 weights (H, G, L) of one query's heads on the keys that it sees."""
        scores = (q_HGD.float() @ k_HLD.float().mT).mul_(self.scaling)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.sinks is None:
            return scores.softmax(-1)
        learned = self.sinks.float().reshape(*scores.shape[:2], 1)
        return torch.cat([scores, learned], -1).softmax(-1)[..., :-1]


class SkipRecorder:
    """Skip sets of the one row that an engine runs, for the layers (cache indices) that keep KV.

    take: called with each step's sets when it is complete, uint64 [layers, words of the tokens before it], bit t of a
    layer set where no KV head needs token t. Step i is the call that writes token ``prefill_tokens + i``: the first of
    them feeds the first token drawn. UserError, in the middle of a call, where layers share their KV.
    """

    def __init__(
        self, layers: Sequence[int], prefill_tokens: int, selection: Selection, take: Callable[[SkipBits], None]
    ) -> None:
        self.prefill_tokens, self.selection, self.steps = prefill_tokens, selection, 0
        self._take = take
        self._index = {layer: index for index, layer in enumerate(layers)}
        self._readers: dict[int, Any] = {}
        self._step: dict[int, SkipBits] = {}
        self._kept_mass = np.zeros(len(self._index))

    @contextmanager
    def watching(self, engine: Engine) -> Iterator[None]:
        """Record what the engine does while the context lasts."""
        skeleton = engine.model.module
        hook = skeleton.register_forward_pre_hook(lambda module, arguments: _watched_by(self))
        skeleton.set_attn_implementation(NAME)
        try:
            yield
        finally:
            skeleton.set_attn_implementation(plain.NAME)
            hook.remove()

    @property
    def kept_mass(self) -> list[float]:
        """Per layer, the attention weight that is not on skipped tokens: the mean over heads and steps."""
        means: list[float] = (self._kept_mass / max(1, self.steps)).tolist()
        return means

    def see(self, module: Any, batch: Batch, query: torch.Tensor, key: torch.Tensor, mask: Any, how: Softmax) -> None:
        """Take a call's attention at one layer; arguments as ``flat_attention`` gets them."""
        (span,) = batch.spans
        known = batch.kv.layer_of(key)
        layer: int = module.layer_idx if known is None else known
        if self._readers.setdefault(layer, module) is not module:
            raise UserError(
                f"several layers read the KV of layer {layer}, and a trace has one reader of each: no record"
            )
        position = span.first + span.count - 1
        # a row that is computed again draws only its newest token, so that none is seen twice
        if not span.samples or position < self.prefill_tokens:
            return
        lowest = mask.lowest(batch) if mask is not None else None
        first = 0 if lowest is None else int(lowest[-1])
        k_HLD = key[0] if known is None else row_keys(batch, layer).to(query.device)
        k_HLD = k_HLD[:, k_HLD.shape[1] - (position + 1 - first) :]
        q_HGD = query[0, :, -1].reshape(len(k_HLD), -1, query.shape[3])
        weights = how.weights(q_HGD, k_HLD)
        skipped = ~self.selection.read(weights, position)
        lost = weights[..., :-1].masked_fill(~skipped[first:], 0).sum(-1).mean()
        self._kept_mass[self._index[layer]] += 1.0 - float(lost)
        self._step[layer] = packed(skipped)
        if len(self._step) == len(self._index):
            done, self._step, self.steps = self._step, {}, self.steps + 1
            self._take(np.stack([done[layer] for layer in self._index]))


def row_keys(batch: Batch, layer: int) -> torch.Tensor:
    """The keys (heads, L, dim) of a call's only row that a layer still holds: the last L up to its last position."""
    ((keys, _),) = batch.kv.joined(layer)
    return keys


def recorded_attention(
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
    """``flat_attention``, seen by the recorder of the call that it belongs to."""
    out = plain.flat_attention(module, query, key, value, attention_mask, scaling, softcap, s_aux, **kwargs)
    how = Softmax(query.shape[-1] ** -0.5 if scaling is None else float(scaling), softcap, s_aux)
    _WATCHING.get().see(module, current_call().batch, query, key, attention_mask, how)
    return out


def _watched_by(recorder: SkipRecorder) -> None:
    _WATCHING.set(recorder)


def packed(flags: torch.Tensor) -> SkipBits:
    """Words whose bit t is the t-th of these booleans."""
    padded = torch.nn.functional.pad(flags, (0, -len(flags) % WORD_BITS)).cpu().numpy()
    return np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)


AttentionInterface.register(NAME, recorded_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, masks.flat_mask)
