"""Sketches beside the virtual runs that they stand for."""

from dataclasses import replace

import pytest
from tests.plan.made import BLOCK, MIB, case

from penstock.plan.policy import Policy, Shares
from penstock.plan.search import Search
from penstock.plan.sketch import Sketch
from penstock.plan.sketch_run import SketchRun
from penstock.plan.types import Length, Placement
from penstock.plan.virtual import VirtualRun

CPU = Shares(cpu=1.0)


def placement(rows: int, sweep: int, blocks: int, kv: Shares = CPU, below: int = 0) -> Placement:
    policy = Policy(Shares(disk=1.0), kv, CPU, rows, sweep, sweep, 2)
    room = {"cpu": blocks * BLOCK, **({"disk": below * BLOCK} if below else {})}
    return Placement(policy, ("disk",) * 16, room, 0, {"cpu": MIB})  # type: ignore[arg-type]  # a tier


ALIKE = [Length(70, 33)] * 90
RAGGED = [Length(10 + 37 * i % 150, 1 + 7 * i % 60) for i in range(200)]


@pytest.mark.parametrize("lengths", [ALIKE, RAGGED])
@pytest.mark.parametrize(("rows", "sweep", "blocks"), [(8, 64, 1000), (64, 64, 1000), (200, 256, 1000)])
def test_with_room_for_its_rows_a_sketch_has_the_sweeps_of_the_scheduler(
    lengths: list[Length], rows: int, sweep: int, blocks: int
) -> None:
    made, placed = case(lengths), placement(rows, sweep, blocks)
    sketched, run = Sketch(made).part(placed, len(lengths)), VirtualRun(made, placed).first(lengths)
    assert sketched.sweeps == run.sweeps
    assert (sketched.tokens_out, sketched.prefill_tokens) == (run.tokens_out, run.prefill_tokens)
    assert sketched.decode_tokens == run.decode_tokens
    assert sketched.rows_mean == pytest.approx(run.rows_mean, rel=0.01)
    assert sketched.seconds == pytest.approx(run.seconds, rel=0.01)


@pytest.mark.parametrize("lengths", [ALIKE, RAGGED])
@pytest.mark.parametrize("blocks", [16, 40, 90])
def test_rows_give_way_as_with_the_scheduler(lengths: list[Length], blocks: int) -> None:
    made, placed = case(lengths), placement(64, 128, blocks)
    sketched, run = Sketch(made).part(placed, len(lengths)), VirtualRun(made, placed).first(lengths)
    assert sketched.tokens_out == run.tokens_out
    assert sketched.seconds == pytest.approx(run.seconds, rel=0.05)
    assert sketched.prefill_tokens == pytest.approx(run.prefill_tokens, rel=0.1)


def test_rows_whose_kv_rests_elsewhere() -> None:
    kv = Shares(cpu=0.5, disk=0.5)
    made, placed = case(ALIKE), placement(16, 64, 80, kv, 80)
    sketched, run = Sketch(made).part(placed, len(ALIKE)), VirtualRun(made, placed).first(ALIKE)
    assert sketched.tokens_out == run.tokens_out
    assert sketched.seconds == pytest.approx(run.seconds, rel=0.1)


@pytest.mark.parametrize("lengths", [ALIKE, RAGGED])
@pytest.mark.parametrize("blocks", [16, 90, 1000])
def test_sweeps_in_which_nothing_happens_are_gone_through_at_once(
    lengths: list[Length], blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, placed = case(lengths), placement(8, 64, blocks)
    at_once = Sketch(made).predict(placed)
    monkeypatch.setattr(SketchRun, "_go_on", lambda self: 0)
    one_by_one = Sketch(made).predict(placed)
    assert (at_once.sweeps, at_once.tokens_out, at_once.rows_mean) == (
        one_by_one.sweeps,
        one_by_one.tokens_out,
        one_by_one.rows_mean,
    )
    assert at_once.seconds == pytest.approx(one_by_one.seconds)


def test_what_prompts_share_is_computed_once() -> None:
    header = list(range(64))
    lengths = [Length(70, 2, [*header, *(1000 * i + j for j in range(6))]) for i in range(10)]
    assert Sketch(case(lengths)).predict(placement(8, 64, 100)).prefill_tokens == 64 + 10 * 6


def test_a_long_job_goes_on_as_its_sketch_does() -> None:
    lengths = [Length(10 + 37 * i % 150, 1 + 7 * i % 60) for i in range(600)]
    made = case(lengths)
    search = Search(made)
    shown = search.whole(search.run(replace(made.asked, rows=8, sweep_tokens=64)))
    exact = VirtualRun(made, shown.placement).first(lengths)
    assert not shown.predicted.whole
    assert shown.predicted.priced < exact.priced / 2
    assert shown.predicted.seconds == pytest.approx(exact.seconds, rel=0.005)
    assert (shown.predicted.tokens_in, shown.predicted.tokens_out) == (exact.tokens_in, exact.tokens_out)
