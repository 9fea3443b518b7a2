"""A skeleton that is ready to be called."""

from dataclasses import dataclass
from typing import Any

import torch

from penstock.engine.binding import Binding
from penstock.engine.cache import FlatCache
from penstock.engine.call import Batch
from penstock.engine.linear import Widening


@dataclass(slots=True)
class Model:
    """A skeleton tied to its pages, ready to be called. dense: cache layers whose module transforms cached keys.

    widening: multiplies by stored weights where calls compute.
    """

    module: Any
    config: Any
    binding: Binding
    widening: Widening
    first_order: tuple[int, ...]
    dense: frozenset[int] = frozenset()
    longrope_switch: int | None = None
    cache_name: str = "past_key_values"

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of the batch's wanted positions, (wanted, vocabulary)."""
        cache = FlatCache(self.config, batch, self.dense)
        out = self.module(
            input_ids=batch.ids,
            position_ids=batch.positions,
            use_cache=True,
            **{self.cache_name: cache},
            logits_to_keep=batch.wanted,
        )
        logits: torch.Tensor = out.logits[0]
        return logits
