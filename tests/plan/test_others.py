"""The ways that a plan was preferred to, and how they are compared with it."""

from dataclasses import replace

import pytest
from tests.plan.made import beside_a_gpu, case, machine
from tests.plan.test_gains import runs_slower

from penstock.machine.machine import Curve
from penstock.plan.attended import Found
from penstock.plan.case import Case
from penstock.plan.others import all_on_cpu, runners_up
from penstock.plan.policy import Shares
from penstock.plan.search import Search
from penstock.plan.types import Asked, Length

LENGTHS = [Length(100, 20)] * 60
CASE = case(LENGTHS)
WAYS = {"one micro-batch per sweep", "single-layer paging (no overlap)", "static split", "all on the cpu"}


def test_other_ways_are_compared_as_sketches() -> None:
    search = Search(CASE)
    ranked = search.best()
    ways = [way.tok_s for way in runners_up(Found(search, ranked))]
    halved = [way.tok_s for way in runners_up(Found(search, [runs_slower(ranked[0], 2), *ranked[1:]]))]
    told = [(a, b) for a, b in zip(ways, halved, strict=True) if a is not None and b is not None]
    assert len(told) >= 2
    assert all(b == pytest.approx(a / 2) for a, b in told)


@pytest.mark.parametrize("made", [CASE, beside_a_gpu(LENGTHS, gpu_mib=200, cpu_mib=1024)], ids=["cpu", "gpu"])
def test_the_same_ways_are_told_of_on_every_machine(made: Case) -> None:
    search = Search(made)
    assert {way.name for way in runners_up(Found(search, search.best(3)))} >= WAYS


def test_beside_a_gpu_the_cpu_is_asked_what_it_does_alone() -> None:
    both = beside_a_gpu(LENGTHS, gpu_mib=200, cpu_mib=1024, asked=Asked(weights=Shares(gpu=0.1, cpu=0.9), rows=20))
    best = Search(both).best(3)[0]
    alone = all_on_cpu(both, best)
    assert alone.tok_s is not None and "cpu-compute" in alone.why
    wider = replace(both.machine.processors["cpu"], products={"float32": Curve.flat(1e9), "bfloat16": Curve.flat(1e13)})
    slow = replace(both, machine=replace(both.machine, processors={**both.machine.processors, "cpu": wider}))
    slower = all_on_cpu(slow, best)
    assert slower.tok_s is not None and slower.tok_s < alone.tok_s / 10  # of weights in float32 nothing faster is known


def test_what_memory_does_not_hold_cannot_be_computed_there() -> None:
    tight = beside_a_gpu(LENGTHS, gpu_mib=200, cpu_mib=200)
    best = Search(replace(tight, ledger=replace(tight.ledger, budget={**tight.ledger.budget, "disk": 1 << 40}))).best(3)
    assert all_on_cpu(tight, best[0]).tok_s is None


def test_a_machine_of_whose_cpu_nothing_is_known() -> None:
    both = beside_a_gpu(LENGTHS, gpu_mib=200, cpu_mib=1024)
    best = Search(both).best(3)[0]
    gpu_alone = replace(both.machine, processors={"gpu": machine().processors["cpu"]})
    told = all_on_cpu(replace(both, machine=gpu_alone), best)
    assert told.tok_s is None and "nothing is known of what made-up's cpu computes" in told.why
