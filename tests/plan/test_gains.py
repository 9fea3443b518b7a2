"""What would help a plan, beside what the plan says of itself."""

from dataclasses import replace

import pytest
from tests.plan.made import beside_a_gpu, case

from penstock.plan.gains import gains
from penstock.plan.policy import Shares
from penstock.plan.search import Candidate, Search
from penstock.plan.types import Asked, Length

CASE = case([Length(100, 20)] * 60)


def best() -> Candidate:
    return Search(CASE).best()[0]


def runs_slower(candidate: Candidate, times: float) -> Candidate:
    """The same plan, had its virtual run taken so much longer than its sketch promised."""
    return replace(candidate, predicted=replace(candidate.predicted, seconds=times * candidate.predicted.seconds))


def test_a_plan_that_was_run_knows_its_sketch() -> None:
    first = best()
    assert not first.sketched
    assert first.outline is not None
    assert first.bias == pytest.approx(first.outline.seconds / first.predicted.seconds)
    assert runs_slower(first, 2).bias == pytest.approx(first.bias / 2)


def test_gains_are_none_that_a_sketch_only_promises() -> None:
    first = best()
    slower = runs_slower(first, 2)
    for gain, halved in zip(gains(Search(CASE), first), gains(Search(CASE), slower), strict=True):
        assert halved.tok_s == pytest.approx(gain.tok_s / 2)


def test_a_disk_that_holds_nothing_of_the_plan_s_own_is_no_use() -> None:
    first = best()
    told = {gain.change: gain.tok_s for gain in gains(Search(CASE), first)}
    assert told["one more GiB of disk"] == first.predicted.total_tok_s
    assert told["disk→cpu twice as fast"] > 1.05 * first.predicted.total_tok_s


def test_kv_elsewhere_stays_there_while_other_machines_are_tried() -> None:
    """A plan that found KV on the cpu gains what one gains that was told to put it there."""
    found = beside_a_gpu([Length(100, 100)] * 200, gpu_mib=100, cpu_mib=1024)
    told = replace(found, asked=Asked(kv=Shares(cpu=1.0)))
    first = Search(told).best(4)[0]
    ours, theirs = ({gain.change: gain.tok_s for gain in gains(Search(c), first)} for c in (found, told))
    assert theirs["cpu→gpu twice as fast"] > 1.05 * first.predicted.total_tok_s
    for change, tok_s in theirs.items():
        assert ours[change] >= tok_s * (1 - 1e-9), change
