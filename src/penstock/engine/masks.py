"""A family's own mask, handed to attention as a range of keys per query instead of a T x T tensor."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from penstock.engine.call import Batch

ALIKE = "penstock"
_CELLS = 1 << 24  # mask cells evaluated at once: 16 MiB of booleans


class NotARange(RuntimeError):
    """A mask that lets a query see something other than one run of keys that ends at its own position."""


class Predicate:
    """A mask as its family wrote it: allowed(batch, head, query position, key position), not yet evaluated.

    It stands in for a 4-d mask tensor, so that models pass it through to attention unread.
    """

    shape, ndim, dtype, device = (1, 1, 1, 1), 4, torch.bool, torch.device("cpu")

    def __init__(self, allowed: Callable[..., torch.Tensor]) -> None:
        self.allowed = allowed
        self._lowest: tuple[Batch, torch.Tensor | None] | None = None

    def __getitem__(self, index: Any) -> "Predicate":
        return self

    def to(self, *args: Any, **kwargs: Any) -> "Predicate":
        return self

    def lowest(self, batch: Batch) -> torch.Tensor | None:
        """The first key position each of the T queries may attend to, int64; None where that is 0 for all.

        Every mask that decoders use lets a query see the keys [lowest, own position]; another one raises NotARange.
        """
        if self.allowed is causal_mask_function:
            return None
        if self._lowest is None or self._lowest[0] is not batch:
            found = self._evaluate(batch)
            self._lowest = batch, (found if bool(found.any()) else None)
        return self._lowest[1]

    def _evaluate(self, batch: Batch) -> torch.Tensor:
        zero, positions = torch.tensor(0), batch.positions[0].cpu()
        lowest = torch.empty_like(positions)
        keys = int(positions.max()) + 1
        step = max(1, _CELLS // keys)
        for first in range(0, len(positions), step):
            q_T1 = positions[first : first + step, None]
            k_1K = torch.arange(keys)[None]
            try:
                allowed_TK = self.allowed(zero, zero, q_T1, k_1K).expand(len(q_T1), keys)
            except (IndexError, RuntimeError, TypeError) as error:
                raise NotARange("the mask is not a function of positions alone") from error
            low = allowed_TK.to(torch.uint8).argmax(1)
            if not bool((allowed_TK == ((k_1K >= low[:, None]) & (k_1K <= q_T1))).all()):
                raise NotARange("the mask is not a run of keys that ends at the query")
            lowest[first : first + step] = low
        return lowest


def flat_mask(
    *args: Any, mask_function: Callable[..., torch.Tensor] = causal_mask_function, **kwargs: Any
) -> Predicate:
    """What transformers calls to make a mask: keep the predicate, build nothing."""
    return Predicate(mask_function)


ALL_MASK_ATTENTION_FUNCTIONS.register(ALIKE, flat_mask)
