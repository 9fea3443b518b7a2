"""Where attention runs if nobody says."""

from dataclasses import replace

import pytest
from tests.plan.made import MIB, beside_a_gpu

from penstock.errors import UserError
from penstock.plan.attended import searched
from penstock.plan.case import Case
from penstock.plan.policy import Shares
from penstock.plan.reasons import explain
from penstock.plan.types import Asked, Length

JOB = [Length(256, 64)] * 64


def linked(upload_bytes_per_s: float, cpu_kv_bytes_per_s: float, asked: Asked | None = None) -> Case:
    made = beside_a_gpu(JOB, 140, 4000, asked or Asked(kv=Shares(cpu=1.0)))
    machine = made.machine
    links = {**machine.links, "cpu→gpu": replace(machine.links["cpu→gpu"], bytes_per_s=upload_bytes_per_s)}
    processors = {
        **machine.processors,
        "cpu": replace(machine.processors["cpu"], kv_bytes_per_s=cpu_kv_bytes_per_s),
    }
    footprint = replace(made.shape.footprint, query_bytes=4096, answer_bytes=8192, staged_layer=8192)
    return replace(
        made,
        machine=replace(machine, links=links, processors=processors),
        shape=replace(made.shape, footprint=footprint),
    )


def test_attention_runs_where_that_is_faster() -> None:
    slow_link, slow_cpu = linked(2e8, 1e11), linked(1e11, 1e7)
    for made, place in ((slow_link, "cpu"), (slow_cpu, None)):
        found = searched(made)
        assert found.best.placement.policy.attention == found.search.case.asked.attention == place
    here, there = searched(replace(slow_link, asked=replace(slow_link.asked, attention="gpu"))), searched(slow_link)
    assert here.best.placement.policy.attention is here.other is None
    assert there.best.predicted.total_tok_s > here.best.predicted.total_tok_s
    assert there.other == here.best
    plan = explain(slow_link, slow_link.machine, "a job")
    assert plan.policy.attention == "cpu"
    (other,) = (one for one in plan.runners_up if one.name == "attention on the gpu")
    assert other.tok_s is not None and other.tok_s < plan.predicted.total_tok_s


def test_keys_that_must_come_to_their_module_do() -> None:
    made = linked(2e8, 1e11)
    transformed = replace(made, shape=replace(made.shape, footprint=replace(made.shape.footprint, transforms=True)))
    assert searched(transformed).best.placement.policy.attention is None


def test_what_fits_only_without_a_ring_on_the_gpu_is_attended_beside_it() -> None:
    made = linked(1e9, 1e10)
    least = next(
        mib
        for mib in range(34, 140)
        if _fits(replace(made, ledger=replace(made.ledger, budget={**made.ledger.budget, "gpu": mib * MIB})))
    )
    tight = replace(made, ledger=replace(made.ledger, budget={**made.ledger.budget, "gpu": least * MIB}))
    with pytest.raises(UserError):
        searched(replace(tight, asked=replace(tight.asked, attention="gpu")))
    assert searched(tight).best.placement.policy.attention == "cpu"


def _fits(made: Case) -> bool:
    try:
        return bool(searched(made, 1))
    except UserError:
        return False
