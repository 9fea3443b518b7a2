"""Placements without a disk: everything in memory, at the price of rows, or a refusal with what would do."""

import re
from dataclasses import replace

import pytest
from tests.plan.made import MIB, case, machine, shape

from penstock.errors import UserError
from penstock.machine.machine import Link
from penstock.plan.case import Case
from penstock.plan.search import Search
from penstock.plan.types import Asked, Ledger, Length
from penstock.plan.wish import placed

LENGTHS = [Length(500, 500)] * 200
PAGES = sum(page.nbytes for page in shape().pages)


def without_disk(memory_mib: int) -> Case:
    made = case(LENGTHS, memory_mib)
    return replace(made, ledger=replace(made.ledger, budget={**made.ledger.budget, "disk": 0}), no_disk=True)


def beside_a_gpu(gpu_mib: int, cpu_mib: int) -> Case:
    host = machine()
    links = {**host.links, "cpu→gpu": Link(1e10), "gpu→cpu": Link(1e10)}
    memory = {"gpu": gpu_mib * MIB, "cpu": cpu_mib * MIB}
    both = replace(host, memory=memory, links=links, processors={**host.processors, "gpu": host.processors["cpu"]})
    return replace(case(LENGTHS), machine=both, ledger=Ledger({**memory, "disk": 0}, {}), no_disk=True)


def least(refusal: UserError) -> int:
    found = re.search(r"^--cpu-memory .* The least that works is (\d+)MiB\.$", str(refusal))
    assert found is not None, refusal
    return int(found[1])


def test_rows_give_way_to_pages_that_nothing_else_holds() -> None:
    tight = without_disk(PAGES // MIB + 80)
    best = Search(tight).best(4)[0]
    assert set(best.placement.homes) == {"cpu"}
    kept = best.placement.kv["cpu"] + best.placement.reserved["cpu"] + PAGES
    assert kept <= tight.ledger.free("cpu")


def test_what_memory_cannot_hold_is_refused_with_what_can() -> None:
    with pytest.raises(UserError, match="resident pages 256 MiB") as refused:
        placed(without_disk(100), Asked())
    assert set(placed(without_disk(least(refused.value)), Asked()).homes) == {"cpu"}


def test_beside_a_gpu_both_memories_hold_the_pages() -> None:
    found = placed(beside_a_gpu(150, 200), Asked())
    assert set(found.homes) == {"gpu", "cpu"}
    with pytest.raises(UserError, match=r"too small without a disk: .* fit neither gpu nor cpu") as refused:
        placed(beside_a_gpu(150, 70), Asked())
    assert set(placed(beside_a_gpu(150, least(refused.value)), Asked()).homes) == {"gpu", "cpu"}
    with pytest.raises(UserError, match="too small without a disk"):
        placed(beside_a_gpu(150, least(refused.value) - 52), Asked())  # two pages, and what a start may differ by
