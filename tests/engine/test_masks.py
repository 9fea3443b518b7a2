"""A family's predicate becomes a first key per query; anything else is refused."""

from types import SimpleNamespace

import pytest
import torch
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from penstock.engine.masks import NotARange, Predicate

POSITIONS = torch.tensor([[0, 1, 2, 3, 7, 8, 9, 20, 5]])
BATCH = SimpleNamespace(positions=POSITIONS)


def test_a_causal_mask_begins_at_the_first_key():
    assert Predicate(causal_mask_function).lowest(BATCH) is None
    assert Predicate(and_masks(causal_mask_function)).lowest(BATCH) is None


def test_a_window_reaches_back_its_length():
    lowest = Predicate(sliding_window_causal_mask_function(4)).lowest(BATCH)
    assert lowest.tolist() == [max(0, p - 3) for p in POSITIONS[0].tolist()]


def test_a_chunk_begins_at_its_multiple():
    lowest = Predicate(chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.long))).lowest(BATCH)
    assert lowest.tolist() == [p // 8 * 8 for p in POSITIONS[0].tolist()]


@pytest.mark.parametrize(
    "allowed",
    [
        bidirectional_mask_function,
        lambda b, h, q, k: (k <= q) & (k != 1),
        lambda b, h, q, k: k < q,
        lambda b, h, q, k: torch.zeros(3, dtype=torch.bool)[k] & (k <= q),
    ],
)
def test_what_is_not_a_run_of_keys_up_to_the_query_is_refused(allowed):
    with pytest.raises(NotARange):
        Predicate(allowed).lowest(BATCH)


def test_it_is_evaluated_once_per_call():
    seen = []

    def allowed(b, h, q, k):
        seen.append(1)
        return (k <= q) & (k > q - 4)

    predicate = Predicate(allowed)
    predicate.lowest(BATCH)
    predicate.lowest(BATCH)
    assert len(seen) == 1
