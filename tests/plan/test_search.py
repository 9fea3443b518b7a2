"""The search beside searches of which more is fixed: what is free to be chosen is never worse than what is fixed."""

from dataclasses import replace

import pytest
from tests.plan.made import MIB, beside_a_gpu, case

from penstock.errors import UserError
from penstock.machine.machine import Link
from penstock.plan.case import Case
from penstock.plan.policy import TIERS, Shares
from penstock.plan.search import Candidate, Search
from penstock.plan.types import Asked, Length

PREFERRED = 0.97  # of what KV elsewhere promises is enough to keep it at hand


def linked(made: Case, upload_bytes_per_s: float, disk_mib: int) -> Case:
    """A case with a faster or slower link to its gpu, and so much to be taken of its disk."""
    link = Link(upload_bytes_per_s)
    machine = replace(made.machine, links={**made.machine.links, "cpu→gpu": link, "gpu→cpu": link})
    return replace(
        made, machine=machine, ledger=replace(made.ledger, budget={**made.ledger.budget, "disk": disk_mib * MIB})
    )


def best(made: Case) -> Candidate:
    return Search(made).best(4)[0]


CASES = {
    "much KV, a small gpu": beside_a_gpu([Length(100, 100)] * 200, gpu_mib=100, cpu_mib=1024),
    "the same, a faster link": linked(beside_a_gpu([Length(100, 100)] * 200, 100, 1024), 1e10, 0),
    "the same, a slower link": linked(beside_a_gpu([Length(100, 100)] * 200, 100, 1024), 2e8, 0),
    "room on the disk alone": linked(beside_a_gpu([Length(200, 60)] * 80, 100, 60), 4e9, 4096),
    "a roomy gpu": beside_a_gpu([Length(100, 20)] * 60, 500, 1024),
    "ragged": linked(beside_a_gpu([Length(10 + 37 * i % 300, 1 + 11 * i % 90) for i in range(90)], 120, 300), 4e9, 512),
    "on a cpu": case([Length(100, 100)] * 150, 120),
    "on a cpu with a slow disk": case([Length(60, 200)] * 40, 150, disk_bytes_per_s=2e8),
}


@pytest.mark.parametrize("name", CASES)
def test_kv_that_rests_where_it_likes_is_never_worse_than_kv_that_is_put_somewhere(name: str) -> None:
    made = CASES[name]
    free = best(made).predicted.total_tok_s
    compared = 0
    for tier in TIERS:
        try:
            forced = best(replace(made, asked=Asked(kv=Shares.from_mapping({tier: 1.0}))))
        except UserError:
            continue  # there is no such tier, or nothing fits it
        assert free >= PREFERRED * forced.predicted.total_tok_s, tier
        compared += 1
    assert compared >= 2


def test_kv_is_put_beside_a_gpu_where_that_holds_more_rows() -> None:
    found = best(CASES["much KV, a small gpu"])
    assert found.placement.policy.kv.gpu < 1
    at_hand = best(replace(CASES["much KV, a small gpu"], asked=Asked(kv=Shares(gpu=1.0))))
    assert found.predicted.total_tok_s > 1.3 * at_hand.predicted.total_tok_s


def test_a_long_run_is_shown_in_part_and_goes_on_as_its_sketch() -> None:
    """Its first rows are run by the scheduler, and that tells what there is to correct of its sketch."""
    made = case([Length(20, 90)] * 900, memory_mib=600)
    search = Search(made)
    outlined = search.run(replace(made.asked, rows=256, sweep_tokens=512))
    shown = search.whole(outlined)
    assert not shown.predicted.whole and shown.predicted.priced < shown.predicted.sweeps
    assert shown.outline is outlined.predicted
    exact = search.whole(outlined)
    assert shown.predicted.tokens_out == exact.predicted.tokens_out == 900 * 90
