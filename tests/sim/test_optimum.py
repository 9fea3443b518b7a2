import itertools
import random
from dataclasses import replace
from fractions import Fraction

import pytest
from tests.sim.cases import Limits, random_case, scenario_of, trace_of, unskipped

from penstock.errors import UserError
from penstock.sim import registry
from penstock.sim.bounds import bounds
from penstock.sim.memories import Duplex, Memories
from penstock.sim.optimum import lb2
from penstock.sim.scenario import Initial, Mode, Scenario, Start
from penstock.sim.simulator import simulate
from penstock.sim.trace_facts import trace_facts

# HBM takes a second for three items, external memory one for one; two prefill items and the new one have room.
TWO_ITEMS = Scenario(
    name="two items",
    memories=Memories(30, 30, 10, 10, 100),
    layers=1,
    attn_bytes=0,
    mlp_bytes=0,
    kv_bytes=10,
    prefill_tokens=2,
    decode_tokens=1,
)


def test_a_free_start_balances_reads_and_the_write() -> None:
    """1.4 of 2 items read from HBM and 0.4 of the new one written: 1.8 / 3 = 0.6 of each other kind."""
    assert lb2(TWO_ITEMS, unskipped(TWO_ITEMS), free_start=True) == pytest.approx(0.6)


def test_from_a_start_in_hbm_only_the_write_can_be_balanced() -> None:
    """Both items are read from HBM, and a quarter of the new one is written there: (2 + 0.25) / 3 = 0.75."""
    assert lb2(TWO_ITEMS, unskipped(TWO_ITEMS)) == pytest.approx(0.75)


def test_inclusive_writes_all_to_external_memory() -> None:
    inclusive = replace(TWO_ITEMS, mode=Mode.INCLUSIVE)
    assert lb2(inclusive, unskipped(inclusive)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("duplex", "seconds"),
    [
        # The new item's part p in HBM: (2 + p) / 3 = 1 - p.
        (Duplex.HALF, 0.75),
        (Duplex.SERIAL, 0.75),
    ],
)
def test_without_external_reads_all_duplex_forms_take_the_same(duplex: Duplex, seconds: float) -> None:
    scenario = replace(TWO_ITEMS, memories=replace(TWO_ITEMS.memories, duplex=duplex))
    assert lb2(scenario, unskipped(scenario)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("duplex", "write", "seconds"),
    [
        # Read y of 2 from HBM, write p there: (y + p) / 3 = (2 - y) = (1 - p) / 2 with writes twice as fast.
        (Duplex.FULL, 20, 3 / 6),
        # (y + p) / 3 = 3 - y - p: one interface at the rate of reads.
        (Duplex.HALF, 20, 3 / 4),
        # y / 3 = 2 - y + 1 / 2: reading costs more outside, so the new item goes there as a whole.
        (Duplex.SERIAL, 20, 5 / 8),
    ],
)
def test_duplex_forms_from_a_free_start(duplex: Duplex, write: int, seconds: float) -> None:
    memories = replace(TWO_ITEMS.memories, duplex=duplex, ext_write_bytes_per_s=write)
    scenario = replace(TWO_ITEMS, memories=memories)
    assert lb2(scenario, unskipped(scenario), free_start=True) == pytest.approx(seconds)


def test_what_hbm_cannot_hold_is_read_from_external_memory() -> None:
    """One place for two items and the new one: one item is read outside in one second, whatever moves."""
    scenario = replace(TWO_ITEMS, memories=replace(TWO_ITEMS.memories, hbm_capacity_bytes=10))
    assert lb2(scenario, unskipped(scenario)) == pytest.approx(1.0)


def test_computing_and_fixed_times_are_in_every_step() -> None:
    scenario = replace(TWO_ITEMS, compute_s=2.0, fixed_s=0.5)
    assert lb2(scenario, unskipped(scenario)) == pytest.approx(2 * 2.5)


def test_weights_are_read_where_the_scenario_puts_them() -> None:
    """A third of the MLP's 60 bytes outside takes 2 s; attention reads a third of 30 there beside the new item."""
    scenario = replace(
        TWO_ITEMS,
        attn_bytes=30,
        mlp_bytes=60,
        initial=Initial(Start.FRACTION, Fraction(2, 3), Fraction(0)),
        memories=replace(TWO_ITEMS.memories, hbm_capacity_bytes=90),
    )
    # Prefill items begin outside: 1 + 2 items are read there in 3 s.
    assert lb2(scenario, unskipped(scenario)) == pytest.approx(2 + 3)
    # Read from HBM, they would leave 1 outside: (2 + 2 + p) / 3 = 1 + ... is longer than both.
    assert lb2(scenario, unskipped(scenario), free_start=True) < 2 + 2


def test_a_large_instance_is_refused_in_one_line() -> None:
    scenario = replace(TWO_ITEMS, prefill_tokens=30_000, decode_tokens=4)
    with pytest.raises(UserError, match="small instances: 120,006 pairs"):
        lb2(scenario, unskipped(scenario))


@pytest.mark.parametrize("mode", ["exclusive", "inclusive"])
@pytest.mark.parametrize("seed", range(50))
def test_every_bound_is_at_least_the_one_before_and_no_policy_beats_the_last(seed: int, mode: str) -> None:
    rng = random.Random(seed)
    case = random_case(rng, Limits(layers=2, prefill=10, decode=6), mode)
    scenario, trace = scenario_of(case), trace_of(case)
    below, optimum = bounds(scenario, trace_facts(trace).reads), lb2(scenario, trace)
    policies = [
        simulate(
            scenario,
            trace,
            rng.choice(list(registry.placements())),
            migration,
            budget_slack=migration != "belady" and rng.random() < 0.3,
        )
        for migration in (*registry.migrations(), *registry.references())
    ]
    best = min(run.time_s for run in policies)
    chain = [below.lb0_s, below.lb1_s, below.lb1_at_weights_s, lb2(scenario, trace, free_start=True), optimum, best]
    for lower, upper in itertools.pairwise(chain):
        assert lower <= upper * (1 + 1e-6)
