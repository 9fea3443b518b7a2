import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.sim.cases import Limits, random_case, scenario_of, trace_of

from penstock.errors import UserError
from penstock.sim.belady import check_size
from penstock.sim.memories import Memories
from penstock.sim.registry import placements
from penstock.sim.result import Run, Traffic
from penstock.sim.scenario import Mode, Scenario
from penstock.sim.simulator import simulate, simulate_many
from penstock.trace.skip_trace import BitTrace, TraceShape

ITEM = 10


def belady(scenario: Scenario, trace: BitTrace) -> Run:
    return simulate(scenario, trace, "prefer-hbm", "belady")


def one_layer(places: int, prefill: int, reads: Sequence[Iterable[int]]) -> tuple[Scenario, BitTrace]:
    """A layer without weights, HBM of so many items, and what each step reads."""
    scenario = Scenario(
        name="one layer",
        memories=Memories(places * ITEM, 30, 10, 10, 100),
        layers=1,
        attn_bytes=0,
        mlp_bytes=0,
        kv_bytes=ITEM,
        prefill_tokens=prefill,
        decode_tokens=len(reads),
    )
    shape = TraceShape(prefill, len(reads), 1)
    bits = np.zeros((shape.steps, 1, shape.words), np.uint64)
    for step, read in enumerate(reads):
        for t in set(range(prefill + step)) - set(read):
            bits[step, 0, t // 64] |= np.uint64(1 << t % 64)
    return scenario, BitTrace(shape, bits)


def test_what_is_read_soonest_takes_the_place_of_what_is_read_last() -> None:
    """Items 0 and 1 begin in HBM; 2, read now and next, replaces 1, which is read last, with its bytes in flight."""
    run = belady(*one_layer(2, 3, [{1, 2}, {2}, {0, 2}, {1}]))
    # 1 is read in HBM at first and leaves in flight; of the new items none is read again.
    assert run.traffic == Traffic(
        hbm_read=4 * ITEM,  # 1; 2; 0 and 2
        ext_read=2 * ITEM,  # 2 at first, 1 at last
        hbm_written=0,
        ext_written=4 * ITEM,
        moved_hbm_written=ITEM,
        moved_ext_written=ITEM,
    )
    assert run.clairvoyant and run.series.hbm_items.tolist() == [2, 2, 2, 2]


def test_what_leaves_without_being_read_is_read_from_hbm_for_it() -> None:
    run = belady(*one_layer(1, 2, [{1}, {1}]))
    assert run.traffic == Traffic(
        hbm_read=ITEM,
        ext_read=ITEM,
        ext_written=2 * ITEM,
        moved_hbm_read=ITEM,
        moved_hbm_written=ITEM,
        moved_ext_written=ITEM,
    )


def test_a_copy_that_leaves_costs_nothing() -> None:
    scenario, trace = one_layer(1, 2, [{1}, {1}])
    run = belady(replace(scenario, mode=Mode.INCLUSIVE), trace)
    assert (run.traffic.moved_ext_written, run.traffic.moved_hbm_read) == (0, 0)
    assert run.traffic.ext_written == 2 * ITEM


def test_a_new_item_takes_a_place_if_it_is_read_before_another() -> None:
    """Token 1, written in the first step, is read in the second; token 0 in the third."""
    run = belady(*one_layer(1, 1, [set(), {1}, {0}]))
    assert run.traffic.hbm_written == ITEM and run.traffic.moved_ext_written == ITEM
    assert run.traffic.hbm_read == ITEM and run.traffic.ext_read == ITEM


def test_a_free_place_takes_a_new_item_that_is_never_read() -> None:
    run = belady(*one_layer(2, 1, [{0}]))
    assert run.traffic.hbm_written == ITEM and run.series.hbm_items.tolist() == [2]


@pytest.mark.parametrize("seed", range(20))
def test_no_policy_reads_fewer_bytes_from_external_memory(seed: int) -> None:
    """With free moves and no balance to keep, Belady's rule is optimal: Belady 1966."""
    rng = random.Random(seed)
    case = random_case(rng, Limits(layers=2, prefill=15, decode=15), mode="exclusive")
    case = replace(case, passive="off")
    scenario, trace = scenario_of(case), trace_of(case)
    missed = belady(scenario, trace).traffic.ext_read
    assert belady(scenario, trace).peak_hbm_bytes <= case.capacity
    for migration in ("none", "past-window", "alpha", "lru"):
        traffic = simulate(scenario, trace, "prefer-hbm", migration, form="numpy").traffic
        assert missed <= traffic.ext_read + traffic.moved_ext_read


def test_placements_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside others, over several windows."""
    case = random_case(random.Random(4), Limits(layers=3, prefill=30, decode=12), mode="exclusive")
    scenario, trace = scenario_of(case), trace_of(case)
    alone = belady(scenario, trace)
    monkeypatch.setattr("penstock.sim.windows.WINDOW_BYTES", 5 * 8 * scenario.layers * trace.shape.words)
    pairs = [(placement, migration) for placement in placements() for migration in ("none", "belady")]
    for run in simulate_many(scenario, trace, pairs, form="numpy")[1::2]:
        assert (run.traffic, run.migration) == (alone.traffic, "belady")
        np.testing.assert_array_equal(run.series.time_s, alone.series.time_s)


def test_what_belady_cannot_do_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="204,000,000 reads"):
        check_size(TraceShape(100_000, 2000, 1))
    scenario, trace = one_layer(2, 1, [{0}])
    with pytest.raises(UserError, match="weighs no move against time: leave budget=slack out"):
        simulate(scenario, trace, "prefer-hbm", "belady:budget=slack")
    with pytest.raises(UserError, match="belady has no kernel"):
        simulate(scenario, trace, "prefer-hbm", "belady", form="kernels")
