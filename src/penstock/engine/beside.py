"""Attention on the cpu beside a gpu: queries come down, results go up, keys and values stay where they lie."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penstock.engine.attention import attend_blocks
from penstock.engine.dense_attention import Result
from penstock.engine.errands import Errand, Errands, Tensors
from penstock.memory.clock import Clock
from penstock.memory.kv import KVStore

if TYPE_CHECKING:
    from penstock.engine.kv_batch import Portion


@dataclass(frozen=True, slots=True)
class Question:
    """A question that the cpu works on. tokens: of the call that it is about."""

    tokens: torch.Tensor
    errand: Errand

    @property
    def coming(self) -> "Future[Any]":
        """Done when the answer is on its way up, or has failed."""
        return self.errand.coming

    def take(self) -> Result:
        """(out, lse) on the compute device, float32, lse without sinks. Raises what ended the work on it."""
        out, lse = self.errand.take()
        return out, lse


class Beside:
    """Attends to blocks on the cpu while the compute device works for other micro-batches."""

    def __init__(self, store: KVStore, clock: Clock) -> None:
        self.errands, self._clock = Errands(store.device, clock), clock

    def ask(
        self,
        layer: int,
        portions: Sequence["Portion"],
        q: torch.Tensor,
        lowest: torch.Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> list[Question]:
        """Begin on each portion's attention; arguments as ``attention.attend_blocks`` has them, lowest on the host."""
        return [self._ask(layer, portion, q, lowest, scaling, softcap) for portion in portions]

    def settle(self) -> None:
        """Leave nothing under way."""
        self.errands.settle()

    def close(self) -> None:
        """End the thread."""
        self.errands.close()

    def _ask(
        self,
        layer: int,
        portion: "Portion",
        q: torch.Tensor,
        lowest: torch.Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> Question:
        queries = portion.mine(q)
        low = None if lowest is None else portion.mine(lowest)
        tokens, heads, _ = queries.shape
        width = portion.store.layer(layer).v_dim
        finds = [torch.empty(shape, device="meta") for shape in ((tokens, heads, width), (tokens, heads))]

        def attend(came: Tensors, found: Tensors) -> None:
            with portion.arenas(layer) as (keys, values), self._clock.lane("cpu-compute", what="attention"):
                results = attend_blocks(came[0], keys, values, portion.tables, low, scaling, softcap)
            for result, into in zip(results, found, strict=True):
                into.copy_(result)

        return Question(portion.tokens, self.errands.send("queries", [queries], attend, finds))
