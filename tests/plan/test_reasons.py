"""Plans of placements that nobody searched for: what a run makes of them, and what does not fit."""

from dataclasses import replace

from tests.plan.made import MIB, case

from penstock.plan.given import given_placement
from penstock.plan.policy import Shares
from penstock.plan.reasons import decided, explain, priced
from penstock.plan.rule import decide
from penstock.plan.types import Asked, Length

CPU = Shares(cpu=1.0)
LENGTHS = [Length(100, 20)] * 60


def test_the_best_plan_has_everything_that_is_said_of_one() -> None:
    made = case(LENGTHS)
    plan = explain(made, made.machine, "a job")
    assert plan.fits and plan.placement is not None
    assert plan.gains and plan.runners_up and plan.curve and plan.memory.keys() == {"cpu", "disk"}


def test_a_decided_placement_is_told_of_as_it_is() -> None:
    made = case(LENGTHS, asked=Asked(weights=Shares(cpu=0.25, disk=0.75), kv=CPU, rows=16))
    placement = decide(made.shape.footprint, made.job, made.ledger, made.asked, "cpu", 0)
    plan = decided(made, made.machine, "a job", placement)
    assert plan.placement == placement and plan.policy == placement.policy
    assert plan.predicted.whole and plan.predicted.priced == plan.predicted.sweeps  # a virtual run, no sketch
    assert plan.gains and {other.name for other in plan.runners_up} >= {"all on the cpu", "one micro-batch per sweep"}


def test_a_static_placement_is_told_of_as_it_is() -> None:
    made = case(LENGTHS, asked=Asked(weights=Shares(disk=1.0), kv=CPU, batch_size=4, num_batches=3))
    placement = decide(made.shape.footprint, made.job, made.ledger, made.asked, "cpu", 0)
    plan = decided(made, made.machine, "a job", placement)
    assert plan.policy.admission == "static" and plan.predicted.rows_mean <= 12


def test_what_overflows_a_tier_is_priced_and_told_by_how_much() -> None:
    made = case(LENGTHS, memory_mib=160, asked=Asked(weights=CPU, kv=CPU, rows=16))
    plan = priced(made, made.machine, "a job", given_placement(made), ["a note"])
    assert not plan.fits and plan.placement is None
    assert plan.memory["cpu"].short > 90 * MIB and "of cpu" in str(plan.why_not)
    assert plan.predicted.total_tok_s > 0 and plan.notes == ("a note",)
    roomy = replace(made, ledger=replace(made.ledger, budget={"cpu": 160 * MIB + plan.memory["cpu"].short, "disk": 0}))
    assert priced(roomy, made.machine, "a job", given_placement(roomy)).fits
