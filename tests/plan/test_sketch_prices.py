"""Sweeps in outline, counted one by one and many at once."""

import pytest
from tests.plan.made import machine, shape

from penstock.plan.cost import SweepCost
from penstock.plan.load import Load, Spans
from penstock.plan.policy import Policy, Shares
from penstock.plan.sketch_prices import Outline

CPU = Shares(cpu=1.0)
COST = SweepCost(shape(), machine(), Policy(CPU, CPU, CPU, 64, 256, 128), ["disk"] * 16)


def seconds(outline: Outline) -> float:
    return outline.prediction(COST, 0.0).seconds


@pytest.mark.parametrize(("decoding", "length"), [(1, 1), (3, 40), (50, 700)])
def test_sweeps_in_which_the_same_rows_decode_are_counted_at_once_as_one_by_one(decoding: int, length: int) -> None:
    at_once, one_by_one = Outline(128), Outline(128)
    at_once.decode(decoding, decoding * length, 500)
    for sweep in range(500):
        one_by_one.decode(decoding, decoding * (length + sweep), 1)
    assert at_once.tally.sweeps == one_by_one.tally.sweeps == 500
    assert at_once.tally.tokens_out == one_by_one.tally.tokens_out == 500 * decoding
    assert seconds(at_once) == pytest.approx(seconds(one_by_one))


def test_sweeps_alike_take_what_each_takes() -> None:
    outline, exact = Outline(128), 0.0
    for sweep in range(60):
        decoding, spans = 30 + sweep % 3, [(0, 64), (64 * (sweep % 2), 20 + sweep % 2)]
        outline.mixed(decoding, decoding * (200 + sweep), spans, 1)
        decode = Load((Spans(decoding, 200 + sweep, 1.0),), decoding)
        first, tokens = sum(first for first, _ in spans), sum(count for _, count in spans)
        prompts = Spans(2, first / 2, tokens / 2)
        exact += COST.price([Load((*decode.spans, prompts), decoding + 1)]).seconds
    assert outline.tally.prefill_tokens == sum(84 + sweep % 2 for sweep in range(60))
    assert seconds(outline) == pytest.approx(exact, rel=0.005)
