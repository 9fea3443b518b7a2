import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.schedule.fake_engine import CPU, HALF, ONE, ROOMY, STEPS, FakeEngine, engines, policy

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Policy, Shares, Tier
from penstock.schedule.types import GroupSpec, Row, Sweep


@settings(max_examples=120, deadline=None)
@given(engines(), st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=8))
def test_every_request_is_served_to_its_end(engine: FakeEngine, requests: list[tuple[int, int]]) -> None:
    asked = {}
    for prompt, max_tokens in requests:
        try:
            asked[engine.add(prompt, max_tokens)] = max_tokens
        except UserError:
            continue
    engine.run()
    assert sorted(engine.finished) == sorted(asked)
    for row_id in asked:
        assert 1 <= engine.rows[row_id].limit <= asked[row_id]
        assert engine.sampled[row_id] == min(engine.rows[row_id].limit, engine.ends.get(row_id, 99))
    assert all(engine.scheduler.blocks_in_use(tier) == 0 for tier in TIERS)
    assert engine.scheduler.running == engine.scheduler.waiting == 0


@settings(max_examples=50, deadline=None)
@given(engines(), st.lists(st.sampled_from(STEPS), max_size=40), st.randoms())
def test_rows_may_come_and_go_between_sweeps(engine: FakeEngine, steps: list[str], chance: random.Random) -> None:
    rows = engine.take(steps, chance, range(1, 21))
    assert sorted(engine.run().finished) == rows
    assert all(engine.scheduler.blocks_in_use(tier) == 0 for tier in TIERS)


def shape(sweep: Sweep) -> list[list[tuple[int, int, int]]]:
    return [[(span.row, span.first, span.count) for span in batch] for batch in sweep.micro_batches]


def test_decode_and_prefill_share_a_sweep() -> None:
    engine = FakeEngine(policy(rows=3, sweep=8), ONE, ROOMY, 4)
    engine.add(3, 9)
    sweeps = engine.sweeps()
    assert shape(next(sweeps)) == [[(0, 0, 3)]]
    engine.add(10, 5)
    engine.add(2, 5)
    assert shape(next(sweeps)) == [[(0, 3, 1), (1, 0, 7)]]
    assert shape(next(sweeps)) == [[(0, 4, 1), (1, 7, 3), (2, 0, 2)]]
    assert shape(next(sweeps)) == [[(0, 5, 1), (1, 10, 1), (2, 2, 1)]]


def test_micro_batches_are_balanced_and_cut_prefills() -> None:
    engine = FakeEngine(policy(sweep=30, batch=20), ONE, ROOMY, 4)
    engine.add(26, 2)
    engine.add(4, 2)
    assert shape(next(engine.sweeps())) == [[(0, 0, 16)], [(0, 16, 10), (1, 0, 4)]]


def test_a_prefill_that_may_not_be_cut_goes_whole() -> None:
    engine = FakeEngine(policy(sweep=8, batch=6), ONE, ROOMY, 4, chunking=False)
    engine.add(20, 2)
    engine.add(5, 2)
    sweeps = engine.sweeps()
    assert shape(next(sweeps)) == [[(0, 0, 20)]]
    assert shape(next(sweeps)) == [[(0, 20, 1), (1, 0, 5)]]


def test_finished_rows_are_replaced_at_once() -> None:
    engine = FakeEngine(policy(rows=2), ONE, ROOMY, 4, ends={0: 1})
    for _ in range(3):
        engine.add(4, 3)
    running = [engine.scheduler.running for _ in engine.sweeps()]
    assert engine.finished == [0, 1, 2] and running == [1, 2, 1, 0]
    assert engine.sampled == {0: 1, 1: 3, 2: 3}


def test_static_groups_enter_together_and_end_together() -> None:
    engine = FakeEngine(policy(sweep=1, batch=6, b=2, number=2), ONE, ROOMY, 4)
    for prompt in (3, 5, 2, 2, 4):
        engine.add(prompt, 2)
    assert [shape(sweep) for sweep in engine.sweeps()] == [
        [[(0, 0, 3), (1, 0, 3)], [(2, 0, 2), (3, 0, 2)]],
        [[(1, 3, 2)]],
        [[(0, 3, 1), (1, 5, 1)], [(2, 2, 1), (3, 2, 1)]],
        [[(4, 0, 4)]],
        [[(4, 4, 1)]],
    ]


def test_homes_meet_the_shares_and_full_blocks_go_home() -> None:
    engine = FakeEngine(policy(kv=HALF, sweep=64), ONE, ROOMY, 4)
    for _ in range(4):
        engine.add(6, 4)
    next(sweeps := engine.sweeps())
    assert [row.home for row in engine.rows.values()] == ["cpu", "disk", "cpu", "disk"]
    assert engine.scheduler.blocks_in_use("disk") == 0
    sweep = next(sweeps)
    assert [(move.source[0], move.target) for move in sweep.moves] == [("cpu", ("disk", 0)), ("cpu", ("disk", 1))]
    tiers = [[block.tier for block in row.tables[0] if block] for row in engine.rows.values()]
    assert tiers == [["cpu", "cpu"], ["disk", "cpu"], ["cpu", "cpu"], ["disk", "cpu"]]


def test_windows_leave_blocks_behind() -> None:
    engine = FakeEngine(policy(), [GroupSpec(1, window=5), GroupSpec(1)], ROOMY, 4)
    engine.add(12, 6)
    next(sweeps := engine.sweeps())
    next(sweeps)
    assert [block is None for block in engine.rows[0].tables[0]] == [True, True, False, False]
    assert [block is None for block in engine.rows[0].tables[1]] == [False] * 4


def test_the_newest_row_is_dropped_and_recomputed() -> None:
    engine = FakeEngine(policy(rows=2), ONE, {"cpu": 60}, 4)
    engine.add(8, 12)
    engine.add(8, 9)
    engine.run()
    assert engine.dropped == [1] and engine.finished == [0, 1] and engine.sampled == {0: 12, 1: 9}


def test_the_newest_row_moves_down_where_kv_has_a_share_there() -> None:
    engine = FakeEngine(policy(rows=2, kv=Shares(cpu=0.99, disk=0.01)), ONE, {"cpu": 60, "disk": 100}, 4)
    engine.add(8, 12)
    engine.add(8, 9)
    engine.run()
    assert not engine.dropped and engine.moved == 2


def tiers(row: Row) -> list[Tier]:
    return [block.tier for block in row.tables[0] if block is not None]


@pytest.mark.parametrize("kv", [Shares(gpu=0.5, cpu=0.5), Shares(gpu=0.4, cpu=0.3, disk=0.3)])
def test_a_row_that_no_tier_holds_lies_on_several_its_oldest_blocks_below(kv: Shares) -> None:
    capacity: dict[Tier, int] = {"gpu": 30, "cpu": 50, "disk": 40}
    engine = FakeEngine(policy(sweep=8, kv=kv), ONE, capacity, 4, kv_tier="gpu")
    engine.add(40 if kv.disk else 25, 8)
    seen = []
    for _ in engine.sweeps():
        seen.append(tiers(engine.rows[0]))
    assert not engine.dropped and engine.sampled == {0: 8}
    assert all(found == sorted(found, key=TIERS.index, reverse=True) for found in seen if "disk" not in found)
    assert {tier for found in seen for tier in found} == {tier for tier in TIERS if kv.of(tier)}
    assert max(found.count("gpu") for found in seen) == 3  # which is filled first, and stays full


def test_a_row_enters_in_parts_where_no_home_has_room_for_all_of_it() -> None:
    capacity: dict[Tier, int] = {"gpu": 60, "cpu": 40}
    engine = FakeEngine(policy(kv=Shares(gpu=0.5, cpu=0.5), sweep=99), ONE, capacity, 4, kv_tier="gpu")
    engine.add(12, 4)  # takes 4 of 6 blocks of the gpu
    engine.add(24, 1)
    sweeps = engine.sweeps()
    assert [(s.row, s.count) for s in next(sweeps).micro_batches[0]] == [(0, 12), (1, 12)]
    for _ in sweeps:
        assert engine.rows[1].home == "gpu"
    assert not engine.dropped and engine.finished == [1, 0] and engine.moved >= 2


def test_no_more_of_a_row_sinks_than_makes_room() -> None:
    kv = Shares(gpu=0.99, cpu=0.01)
    engine = FakeEngine(policy(rows=2, kv=kv), ONE, {"gpu": 60, "cpu": 100}, 4, kv_tier="gpu")
    engine.add(8, 12)
    engine.add(8, 12)
    for _ in engine.sweeps():
        on_cpu = [tiers(row).count("cpu") for row in engine.rows.values()]
        assert sum(on_cpu) <= 4 and on_cpu[0] <= on_cpu[1]
    assert engine.moved == 4 and not engine.dropped  # 10 blocks of both rows, and 6 on the gpu


def test_admission_counts_blocks_in_use_and_one_ahead() -> None:
    engine = FakeEngine(policy(rows=9), ONE, {"cpu": 100}, 4)
    for _ in range(9):
        engine.add(8, 1000)
    next(engine.sweeps())
    assert engine.scheduler.running == 3  # 2 blocks each and one ahead, in 10


def test_a_row_that_memory_cannot_hold_to_its_end_stops_where_it_is_full() -> None:
    engine = FakeEngine(policy(), ONE, {"cpu": 30}, 4)
    row_id = engine.add(8, 1000)
    engine.run()
    assert engine.sampled == {row_id: 5}  # 12 positions, and the token after the last


@pytest.mark.parametrize("kv", [CPU, HALF])
def test_a_prompt_that_fits_no_memory_is_refused_with_bytes(kv: Shares) -> None:
    engine = FakeEngine(policy(kv=kv), [GroupSpec(2**20)], {"cpu": 2 * 2**20, "disk": 0}, 4)
    with pytest.raises(
        UserError, match=r"9 prompt tokens of request 'r0' need 3 MiB on cpu for KV, there are cpu 2 MiB"
    ):
        engine.add(9, 1)
    engine.add(8, 1)


def test_requests_without_tokens_are_refused() -> None:
    engine = FakeEngine(policy(), ONE, ROOMY, 4)
    for prompt, max_tokens in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match="both must be at least 1"):
            engine.add(prompt, max_tokens)


def test_a_row_told_to_recompute_keeps_its_place() -> None:
    engine = FakeEngine(policy(rows=2), ONE, ROOMY, 4)
    for _ in range(3):
        engine.add(6, 4)
    next(sweeps := engine.sweeps())
    engine.recompute(0)
    sweep = next(sweeps)
    assert shape(sweep) == [[(0, 0, 7), (1, 6, 1)]] and sweep.dropped == (0,)
    assert engine.run().sampled == {0: 4, 1: 4, 2: 4}


def test_unknown_rows() -> None:
    scheduler = FakeEngine(policy(), ONE, ROOMY, 4).scheduler
    scheduler.abort(7)
    with pytest.raises(KeyError):
        scheduler.row(7)
    assert scheduler.next() is None


def test_the_rows_that_may_generate_most_enter_first_and_dropped_ones_before_them() -> None:
    engine = FakeEngine(policy(rows=1), ONE, ROOMY, 4)
    for most in (1, 3, 2, 3):
        engine.add(4, most)
    assert engine.run().finished == [1, 3, 2, 0]


def test_the_longest_first_leave_no_tail_of_few_rows() -> None:
    engine = FakeEngine(policy(rows=2), ONE, ROOMY, 4)
    for most in (2, 2, 2, 6):
        engine.add(1, most)
    assert len(list(engine.sweeps())) == 6


def test_static_groups_keep_their_order() -> None:
    engine = FakeEngine(policy(b=1, number=1), ONE, ROOMY, 4)
    for most in (1, 3):
        engine.add(4, most)
    assert engine.run().finished == [0, 1]


@pytest.mark.parametrize("how", [policy(b=2, number=2), policy(rows=4)], ids=["static", "continuous"])
def test_nothing_is_kept_of_rows_that_have_ended(how: Policy) -> None:
    engine = FakeEngine(how, ONE, ROOMY, 4)
    for row in range(40):
        engine.add(1 + row % 7, 1 + row % 5)
    engine.run()
    engine.add(1, 1)
    engine.run()
    scheduler = engine.scheduler
    assert len(scheduler._longest) <= 1, "the row that entered last is passed over when the next one looks"
    assert not scheduler._waiting and not scheduler._returning and not scheduler._room.rows
    prefixes = scheduler._room.prefixes
    assert not prefixes._blocks and not prefixes._owners and not +prefixes._wanted
