"""Policies as they were given, whatever room there is."""

from dataclasses import replace

import pytest
from tests.plan.made import BLOCK, MIB, case, shape

from penstock.plan.case import Case
from penstock.plan.given import given_placement
from penstock.plan.policy import Shares
from penstock.plan.types import Asked, Length

CPU, DISK = Shares(cpu=1.0), Shares(disk=1.0)
LENGTHS = [Length(100, 20)] * 200
ROW = 9 * BLOCK  # 8 blocks of 120 tokens and one to grow into


def given(memory_mib: int = 160, **wishes: object) -> Case:
    return case(LENGTHS, memory_mib, asked=Asked(**wishes))  # type: ignore[arg-type]  # a test's shorthand


def test_what_was_given_is_kept_though_it_does_not_fit() -> None:
    placement = given_placement(given(weights=CPU, kv=CPU, rows=150, slots=3, batch_tokens=64, sweep_tokens=512))
    policy = placement.policy
    assert set(placement.homes) == {"cpu"} and placement.kv == {"cpu": 150 * ROW}
    assert (policy.rows, policy.slots, policy.batch_tokens, policy.sweep_tokens) == (150, 3, 64, 512)


def test_what_was_left_open_takes_the_room_that_there_is() -> None:
    placement = given_placement(given(100, weights=DISK))
    held = placement.policy.rows
    assert 1 < held < 200
    assert placement.reserved["cpu"] + placement.kv["cpu"] <= 100 * MIB < placement.reserved["cpu"] + (held + 1) * ROW
    assert given_placement(given(weights=CPU)).policy.rows == 1  # pages leave none, and nothing runs with none
    assert given_placement(given(1 << 12, weights=CPU)).policy.rows == len(LENGTHS)


def test_rows_that_rest_on_a_slower_tier_take_its_room() -> None:
    asked = given(weights=DISK, kv=Shares(cpu=0.5, disk=0.5))
    few = replace(asked, ledger=replace(asked.ledger, budget={**asked.ledger.budget, "disk": 10 * ROW}))
    assert given_placement(few).policy.rows == 20


def test_the_longest_row_s_kv_is_the_least() -> None:
    ragged = replace(given(rows=1, weights=DISK), lengths=[Length(10, 2)] * 9 + [Length(1000, 20)])
    assert given_placement(ragged).kv["cpu"] >= (1020 // 16 + 1) * BLOCK


def test_recurrent_state_is_counted_for_every_row() -> None:
    plain = given(weights=DISK, rows=10)
    state = replace(shape(), footprint=replace(shape().footprint, state=MIB))
    more = given_placement(replace(plain, shape=state)).reserved["cpu"] - given_placement(plain).reserved["cpu"]
    assert more >= 10 * MIB


@pytest.mark.parametrize("slots", [None, 1])
def test_flexgen_s_form_holds_a_layer_s_pages_unless_it_is_told_otherwise(slots: int | None) -> None:
    placement = given_placement(given(weights=DISK, kv=CPU, batch_size=4, num_batches=3, slots=slots))
    assert placement.policy.slots == (slots or 2)
    assert (placement.policy.admission, placement.policy.rows) == ("static", 12)
