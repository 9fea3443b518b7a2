"""Sharing, seen from the engine: what rows read is theirs, memory holds, and every row ends."""

import random
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import zip_longest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.schedule.fake_engine import HALF, ONE, ROOMY, STEPS, FakeEngine, engines, policy

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Shares, Tier
from penstock.schedule.room import Room
from penstock.schedule.types import GroupSpec, Row, Sweep

Prompt = tuple[int, ...]


@st.composite
def alike(draw: st.DrawFn) -> list[Prompt]:
    """Prompts that begin with parts of few headers."""
    headers = draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=18), min_size=1, max_size=3))
    prompts = []
    for _ in range(draw(st.integers(2, 9))):
        header = draw(st.sampled_from(headers))
        tail = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
        prompts.append((*header[: draw(st.integers(len(header) // 2, len(header)))], *tail))
    return prompts


@settings(max_examples=150, deadline=None)
@given(engines(sharing=True), alike(), st.lists(st.integers(1, 9), min_size=9, max_size=9))
def test_rows_that_share_are_served_to_their_ends(engine: FakeEngine, prompts: list[Prompt], most: list[int]) -> None:
    for prompt, max_tokens in zip(prompts, most, strict=False):
        try:
            engine.add(prompt, max_tokens)
        except UserError:
            continue
    engine.run()
    assert sorted(engine.finished) == sorted(engine.rows)
    for row_id, row in engine.rows.items():
        assert engine.sampled[row_id] == min(row.limit, engine.ends.get(row_id, 99))
    assert_empty(engine)


@settings(max_examples=120, deadline=None)
@given(engines(sharing=True), alike(), st.lists(st.sampled_from([*STEPS, "add", "sweep"]), max_size=50), st.randoms())
def test_rows_that_share_may_come_and_go(
    engine: FakeEngine, prompts: list[Prompt], steps: list[str], chance: random.Random
) -> None:
    rows = engine.take(steps, chance, prompts)
    assert sorted(engine.run().finished) == rows
    assert_empty(engine)


def assert_empty(engine: FakeEngine) -> None:
    scheduler = engine.scheduler
    prefixes = scheduler._room.prefixes
    assert scheduler.running == scheduler.waiting == 0
    assert all(scheduler.blocks_in_use(tier) == 0 for tier in TIERS)
    assert not prefixes._blocks and not prefixes._wanted and not prefixes._owners


@settings(max_examples=60, deadline=None)
@given(engines(), st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=8))
def test_prompts_that_begin_differently_are_scheduled_as_ever(
    engine: FakeEngine, requests: list[tuple[int, int]]
) -> None:
    without = FakeEngine(
        engine.policy,
        engine.groups,
        engine.capacity,
        engine.block_tokens,
        engine.chunking,
        engine.kv_tier,
        sharing=False,
        ends=engine.ends,
    )
    for prompt, max_tokens in requests:
        for one in (engine, without):
            try:
                one.add(prompt, max_tokens)
            except UserError:
                continue
    for ours, theirs in zip_longest(engine.sweeps(), without.sweeps()):
        assert ours == theirs
        assert engine.scheduler._room.pool._next == without.scheduler._room.pool._next
        assert all(engine.scheduler.blocks_in_use(t) == without.scheduler.blocks_in_use(t) for t in TIERS)


@settings(max_examples=120, deadline=None)
@given(engines(), alike(), st.lists(st.sampled_from([*STEPS, "add", "sweep"]), max_size=50), st.randoms())
def test_who_gives_way_is_the_newest_with_blocks_there(
    engine: FakeEngine, prompts: list[Prompt], steps: list[str], chance: random.Random
) -> None:
    """However the rows that hold none are passed over."""
    room = engine.scheduler._room

    def by_looking_at_all(tier: Tier, oldest: Row) -> Row | None:
        newer = [row for row in room.rows.values() if row.turn >= oldest.turn]
        holds = [row for row in newer if any(b and b.tier == tier for table in row.tables for b in table)]
        return holds[-1] if holds else None

    def both(tier: Tier, oldest: Row) -> Row | None:
        found = Room._newest_holding(room, tier, oldest)
        assert found is by_looking_at_all(tier, oldest)
        return found

    room._newest_holding = both  # type: ignore[method-assign]  # the same, checked
    engine.take(steps, chance, prompts)
    engine.run()


def sink_by_looking_at_all(room: Room, tier: Tier, need_bytes: int, oldest: Row | None = None) -> None:
    """``Room._sink`` as it was: in a full tier every row is passed for every block."""
    below = room._below(tier)
    if not below or tier in room._exhausted or (oldest is not None and oldest.turn > room._last_holder):
        return
    for row in reversed(room.rows.values()):
        full = row.rested if tier != room.kv_tier else row.computed // room.block_tokens
        while row.home == tier and row.sunk < full and room.pool.free(tier) < need_bytes:
            blocks = room._blocks_at(row, row.sunk, tier)
            lower = room._tier_with_room(below, room._bytes(blocks))
            if lower is None:
                room._exhausted.add(tier)
                return
            room.moves += [room.pool.move(block, lower) for block in blocks]
            row.sunk += 1
        if row is oldest or room.pool.free(tier) >= need_bytes:
            return
    room._exhausted.add(tier)


@settings(max_examples=300, deadline=None)
@given(engines(), alike(), st.lists(st.sampled_from([*STEPS, "add", "add", "sweep"]), max_size=60), st.integers())
def test_what_sinks_is_what_looking_at_all_rows_would_choose(
    engine: FakeEngine, prompts: list[Prompt], steps: list[str], seed: int
) -> None:
    other = deepcopy(engine)
    room = other.scheduler._room
    room._sink = partial(sink_by_looking_at_all, room)  # type: ignore[method-assign]  # the decisions of before
    sweeps = []
    for one in (engine, other):
        sweeps.append(executed := list[Sweep]())
        one.execute = partial(noted, executed, one.execute)  # type: ignore[method-assign]  # the same, seen
        one.take(steps, random.Random(seed), prompts)
        one.run()
    assert sweeps[0] == sweeps[1]


def noted(executed: list[Sweep], execute: Callable[[Sweep], None], sweep: Sweep) -> None:
    executed.append(deepcopy(sweep))
    execute(sweep)


def test_a_full_tier_is_not_gone_through_for_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    full = Room._full
    monkeypatch.setattr(Room, "_full", lambda room, row: (looked.append(row.id), full(room, row))[1])
    number = 300
    kv = policy(rows=number, sweep=4 * number, batch=4 * number, kv=HALF)
    engine = FakeEngine(kv, ONE, {"cpu": 10 * (number + 20), "disk": 10 * 40 * number}, 2)
    for _ in range(number):
        engine.add(8, 24)
    sweeps = sum(1 for _ in engine.sweeps())
    assert engine.moved > 10 * number
    assert len(looked) < 4 * (engine.moved + number * sweeps)


def spans(sweep: Sweep) -> list[tuple[int, int, int]]:
    return [(span.row, span.first, span.count) for batch in sweep.micro_batches for span in batch]


HEADER = tuple(range(8))


def with_tail(tail: int, tokens: int = 2) -> Prompt:
    return (*HEADER, *[100 + tail] * tokens)


def test_rows_that_arrive_together_wait_for_the_first_to_compute_their_header() -> None:
    engine = FakeEngine(policy(), ONE, ROOMY, 4)
    for tail in range(3):
        engine.add(with_tail(tail), 3)
    engine.add((7, 7, 7), 3)
    sweeps = engine.sweeps()
    assert spans(next(sweeps)) == [(0, 0, 10), (3, 0, 3)]
    assert spans(next(sweeps)) == [(0, 10, 1), (1, 8, 2), (2, 8, 2), (3, 3, 1)]
    tables = [engine.rows[row].tables[0] for row in range(3)]
    assert all(table[:2] == tables[0][:2] for table in tables) and tables[0][0].references == 3
    assert engine.scheduler.shared_tokens == 16


def test_the_block_of_the_last_prompt_token_is_computed() -> None:
    engine = FakeEngine(policy(rows=1), ONE, ROOMY, 4)
    for _ in range(2):
        engine.add(HEADER, 1)
    assert [spans(sweep) for sweep in engine.sweeps()] == [[(0, 0, 8)], [(1, 4, 4)]]


def test_a_header_lingers_for_a_row_that_waits_and_no_longer() -> None:
    engine = FakeEngine(policy(rows=1), ONE, ROOMY, 4)
    engine.add(with_tail(0), 2)
    engine.add((9,), 2)
    engine.add(with_tail(1), 1)
    used = []
    for _ in (sweeps := engine.sweeps()):
        used.append(engine.scheduler.blocks_in_use("cpu"))
        if len(used) == 3:
            engine.scheduler.abort(2)
            engine.finished.append(2)
            used.append(engine.scheduler.blocks_in_use("cpu"))
    assert used == [30, 20, 30, 10, 0] and next(sweeps, None) is None


def test_lingering_blocks_give_way_to_new_ones() -> None:
    engine = FakeEngine(policy(rows=1), ONE, {"cpu": 40}, 4)
    engine.add(with_tail(0), 1)
    engine.add(14, 1)
    engine.add(with_tail(1), 1)
    assert engine.run().finished == [0, 1, 2] and not engine.dropped
    assert engine.prefilled == 10 + 14 + 10


def test_regimes_do_not_share() -> None:
    engine = FakeEngine(policy(), ONE, ROOMY, 4)
    for regime in ("", "", "long", "long", None, None):
        engine.add(with_tail(0), 2, regime)
    engine.run()
    assert engine.scheduler.shared_tokens == 2 * 8 and engine.prefilled == 4 * 10 + 2 * 2


def test_a_window_is_taken_over_as_far_as_it_reaches() -> None:
    engine = FakeEngine(policy(rows=1), [GroupSpec(1, window=5), GroupSpec(1)], ROOMY, 4)
    prompts = [(*range(24), *[100 + tail] * 9) for tail in range(3)]
    for prompt in prompts:
        engine.add(prompt, 4)
    sweeps = engine.sweeps()
    next(sweep for sweep in sweeps if spans(sweep)[0][:2] == (1, 24))
    assert [block is None for block in engine.rows[1].tables[0]][:6] == [True] * 5 + [False]
    engine.run()
    assert engine.scheduler.shared_tokens == 48


def test_a_shared_block_goes_home_once_and_all_rows_find_it_there() -> None:
    engine = FakeEngine(policy(kv=HALF), ONE, ROOMY, 4)
    for tail in range(4):
        engine.add(with_tail(tail, 4), 9)
    for _ in engine.sweeps():
        rows = [row for row in engine.rows.values() if row.id not in engine.finished and row.begun]
        tables = [row.tables[0][:2] for row in rows]
        assert all(table == tables[0] for table in tables if tables)
    assert {row.home for row in engine.rows.values()} == {"cpu", "disk"}
    assert engine.scheduler.shared_tokens == 24


def test_an_owner_that_ends_early_is_waited_for_no_longer() -> None:
    engine = FakeEngine(policy(sweep=4), ONE, ROOMY, 4)
    for tail in range(3):
        engine.add(with_tail(tail), 2)
    sweeps = engine.sweeps()
    assert spans(next(sweeps)) == [(0, 0, 4)]
    engine.scheduler.abort(0)
    engine.finished.append(0)
    engine.add(with_tail(3), 2)
    assert spans(next(sweeps)) == [(1, 4, 4)]
    engine.recompute(1)
    assert spans(next(sweeps)) == [(1, 0, 4)]
    assert sorted(engine.run().finished) == [0, 1, 2, 3]


def test_a_row_that_recomputes_shares_nothing() -> None:
    engine = FakeEngine(policy(), ONE, ROOMY, 4)
    engine.add(with_tail(0), 9)
    next(sweeps := engine.sweeps())
    engine.recompute(0)
    assert spans(next(sweeps)) == [(0, 0, 11)]
    engine.add(with_tail(1), 1)
    assert spans(next(sweeps)) == [(0, 11, 1), (1, 0, 10)]


def test_blocks_taken_over_on_the_kv_tier_leave_it_for_the_tail() -> None:
    kv = Shares(gpu=0.5, cpu=0.5)
    engine = FakeEngine(policy(rows=1, kv=kv), ONE, {"gpu": 30, "cpu": 80}, 4, kv_tier="gpu")
    engine.add(with_tail(0, 1), 1)  # at home on the gpu, where the others have no room
    for _ in range(2):
        engine.add(with_tail(1, 5), 1)
    sweeps = engine.sweeps()
    assert spans(next(sweeps)) == [(0, 0, 9)]
    assert spans(next(sweeps))[0][:2] == (1, 8)
    engine.scheduler.abort(1)
    engine.finished.append(1)
    assert engine.run().sampled == {0: 1, 1: 1, 2: 1}
