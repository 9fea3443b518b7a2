from dataclasses import replace

import pytest
from tests.plan.made import BLOCK, MIB, case, shape

from penstock.plan.policy import Policy, Shares
from penstock.plan.search import Search
from penstock.plan.types import Asked, Length, Placement
from penstock.plan.virtual import VirtualRun
from penstock.schedule.scheduler import Scheduler
from penstock.schedule.types import GroupSpec, Request

CPU = Shares(cpu=1.0)


def placement(rows: int = 8, sweep: int = 64, kv_mib: int = 64, slots: int = 2, home: str = "disk") -> Placement:
    policy = Policy(Shares(disk=1.0), CPU, CPU, rows, sweep, sweep, slots)
    return Placement(policy, (home,) * 16, {"cpu": kv_mib * MIB}, 0, {"cpu": 0})  # type: ignore[arg-type]  # a tier


def test_sweeps_rows_and_tokens_are_those_of_the_scheduler() -> None:
    lengths = [Length(10 + 7 * i % 50, 3 + i % 9) for i in range(30)]
    predicted = VirtualRun(case(lengths), placement()).predict(lengths)
    scheduler = Scheduler(placement().policy, [GroupSpec(BLOCK)], {"cpu": 64 * MIB}, 16, "cpu", sharing=False)
    for i, one in enumerate(lengths):
        scheduler.add(Request(str(i), range(one.prompt), one.generated))
    sweeps = 0
    while (sweep := scheduler.next()) is not None:
        scheduler.done(sweep, ())
        sweeps += 1
    assert (predicted.sweeps, predicted.whole) == (sweeps, True)
    assert predicted.tokens_out == sum(one.generated for one in lengths)
    assert predicted.prefill_tokens == sum(one.prompt for one in lengths)
    assert predicted.decode_tokens == sum(one.generated - 1 for one in lengths)


def test_a_streamed_sweep_takes_as_long_as_its_pages_where_compute_is_quick() -> None:
    lengths = [Length(1, 9)] * 4
    predicted = VirtualRun(case(lengths), placement()).predict(lengths)
    assert predicted.seconds / predicted.sweeps == pytest.approx(16 * 16 * MIB / 1e9, rel=0.05)
    assert predicted.binding_lane == "disk→cpu"


def test_nothing_overlaps_with_one_slot() -> None:
    lengths = [Length(60, 4)] * 8
    over, one = (VirtualRun(case(lengths), placement(slots=slots)).predict(lengths) for slots in (2, 1))
    assert one.seconds == pytest.approx(sum(one.lanes.values()), rel=1e-6)
    assert over.seconds < one.seconds


def test_resident_pages_cost_no_link() -> None:
    lengths = [Length(20, 4)] * 8
    predicted = VirtualRun(case(lengths), placement(home="cpu")).predict(lengths)
    assert set(predicted.lanes) == {"cpu-compute"} and predicted.hidden_tokens == 0


def test_kv_is_written_to_new_memory_once() -> None:
    """Eight rows at a time hold two blocks each, whatever the number of rows that follow them."""
    lengths = [Length(20, 4)] * 24
    made = case(lengths)
    cpu = replace(made.machine.processors["cpu"], fresh_bytes_per_s=1e6)
    slow = replace(made, machine=replace(made.machine, processors={"cpu": cpu}))
    at_once, given = (VirtualRun(each, placement(home="cpu")).predict(lengths) for each in (made, slow))
    seconds = 8 * 2 * BLOCK / 1e6
    assert given.seconds - at_once.seconds == pytest.approx(seconds, rel=0.15)  # rows of two fillings overlap by a few
    assert given.lanes["cpu-compute"] - at_once.lanes["cpu-compute"] == pytest.approx(given.seconds - at_once.seconds)
    assert given.prefill_s + given.decode_s == pytest.approx(given.seconds)


def test_shared_prompts_are_computed_once() -> None:
    header = list(range(64))
    lengths = [Length(70, 2, [*header, *(1000 * i + j for j in range(6))]) for i in range(10)]
    predicted = VirtualRun(case(lengths), placement()).predict(lengths)
    assert predicted.prefill_tokens == 64 + 10 * 6


def test_a_long_job_is_extended_from_its_middle() -> None:
    lengths = [Length(20, 10)] * 600
    run = VirtualRun(case(lengths), placement())
    whole, extended = run.predict(lengths, 10**6), run.predict(lengths, 60)
    assert whole.whole and not extended.whole and extended.priced < whole.priced / 2
    assert extended.seconds == pytest.approx(whole.seconds, rel=0.05)
    assert extended.tokens_out == whole.tokens_out


def test_a_faster_disk_never_takes_longer() -> None:
    lengths = [Length(20, 10)] * 20
    slow, fast = (VirtualRun(case(lengths, disk_bytes_per_s=rate), placement()).predict(lengths) for rate in (1e9, 2e9))
    assert fast.seconds < slow.seconds


def test_the_search_is_never_slower_than_the_rule() -> None:
    for lengths in ([Length(20, 10)] * 64, [Length(200, 4)] * 16, [Length(9, 3 + i % 40) for i in range(50)]):
        search = Search(case(lengths))
        by_rule = search.whole(search.run(Asked()))
        assert search.best()[0].predicted.total_tok_s >= 0.999 * by_rule.predicted.total_tok_s


def test_what_the_search_places_keeps_the_budget() -> None:
    made = case([Length(20, 30)] * 200, memory_mib=200)
    for candidate in Search(made).best():
        placed = candidate.placement
        resident = sum(page.nbytes for page, home in zip(shape().pages, placed.homes, strict=True) if home == "cpu")
        assert resident + placed.kv["cpu"] + placed.reserved["cpu"] <= 200 * MIB


def test_what_is_fixed_stays_fixed() -> None:
    made = case([Length(20, 10)] * 64, asked=Asked(rows=12, slots=2))
    for candidate in Search(made).best():
        assert (candidate.placement.policy.rows, candidate.placement.policy.slots) == (12, 2)


def test_a_bound_on_the_time_per_token_is_kept_where_it_can_be() -> None:
    lengths = [Length(20, 10)] * 64
    free = Search(case(lengths)).best()[0].predicted.steady.seconds
    bound = replace(case(lengths), token_s=0.9 * free)
    assert Search(bound).best()[0].predicted.steady.seconds <= 0.9 * free
