"""What a plan's figures make of its bytes and seconds."""

from dataclasses import replace

from tests.cli.fake_planner import PLAN, PREDICTION

from penstock.plan.plan import Use


def test_what_is_missing_of_a_budget_and_what_is_left() -> None:
    use = Use(budget=100, taken=10, weights=50, kv=20, activations=5, buffers=5)
    assert (use.needed, use.free, use.short) == (90, 10, 0)
    over = replace(use, kv=60)
    assert (over.needed, over.free, over.short) == (130, 0, 30)


def test_what_is_read_in_place_takes_nothing() -> None:
    use = Use(budget=100, taken=10, weights=500, kv=20, activations=0, buffers=0, in_place=500)
    assert (use.needed, use.free, use.short) == (30, 70, 0)


def test_a_plan_fits_if_no_tier_is_short() -> None:
    assert PLAN.fits
    assert not replace(PLAN, memory={**PLAN.memory, "cpu": Use(1, 0, 2, 0, 0, 0)}).fits


def test_rates_of_a_job_that_takes_no_time_are_none() -> None:
    assert PREDICTION.total_tok_s == 300_000 / 21_720 and PREDICTION.binding_lane == "disk→cpu"
    still = replace(PREDICTION, seconds=0.0, prefill_s=0.0, decode_s=0.0)
    assert (still.total_tok_s, still.prefill_tok_s, still.decode_tok_s) == (0.0, 0.0, 0.0)
