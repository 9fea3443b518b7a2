"""What a model sees as its cache during one flat call: each span's keys and values go to its own row's blocks."""

from typing import Any

import torch
from transformers import DynamicCache

from penstock.engine.call import Batch, current_call


class FlatCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """Routes ``update`` to KV blocks; what it returns is a handle that attention knows by identity.

    Layers in ``dense`` get all keys back as one tensor instead, because their module transforms them before attending
    (latent attention).
    """

    def __init__(self, config: Any, batch: Batch, dense: frozenset[int] = frozenset()) -> None:
        super().__init__(config=config)
        self.batch, self.dense = batch, dense

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keys (1, heads, T, dim), values likewise: the call's new tokens, written to their rows' blocks."""
        kv, host = self.batch.kv, current_call().host
        if host is None:
            kv.append(keys, values, layer_idx)
        else:
            host.append(keys, values, layer_idx)
        if layer_idx in self.dense:
            return kv.gather(layer_idx, keys.dtype)
        kv.remember(keys, layer_idx)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0
