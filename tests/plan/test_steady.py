"""The closed form of a job, and where its linear program puts bytes."""

from dataclasses import replace

import pytest
from tests.plan.made import BLOCK, MIB, beside_a_gpu, case

from penstock.machine.machine import Link
from penstock.plan.case import Case
from penstock.plan.policy import Shares
from penstock.plan.sizes import Cut
from penstock.plan.steady import Steady
from penstock.plan.types import Length

CUT = Cut(2, 32, 8, 32)


def with_disk(nbytes: int) -> Case:
    made = case([Length(100, 20)] * 60)
    return replace(made, ledger=replace(made.ledger, budget={**made.ledger.budget, "disk": nbytes}))


def test_weights_stream_from_where_they_lie_whatever_the_disk_may_take() -> None:
    ample, nothing = (Steady(with_disk(nbytes)).estimate(CUT) for nbytes in (1 << 40, 0))
    assert nothing is not None and nothing == ample


def test_on_a_disk_that_may_take_nothing_there_are_weights_and_no_kv() -> None:
    placed = Steady(with_disk(0)).placed(CUT)
    assert placed is not None and placed.optimum is not None
    assert placed.optimum.shares["weights"]["disk"] > 0.3
    assert placed.kv == Shares(cpu=1.0) and set(placed.optimum.shares["kv"]) == {"cpu"}


def test_weights_take_nothing_of_what_the_disk_may_take() -> None:
    """Of a disk that may take less than the weights, a byte more is worth nothing."""
    few, many = (Steady(with_disk(nbytes)).placed(CUT) for nbytes in (8 * MIB, 1 << 40))
    assert few is not None and few.optimum is not None and many is not None and many.optimum is not None
    assert few.optimum.seconds == many.optimum.seconds
    assert few.optimum.byte_duals["disk"] == 0


def test_without_a_disk_no_weights_are_on_it() -> None:
    assert Steady(replace(with_disk(0), no_disk=True)).estimate(CUT) is None


def test_kv_beside_a_gpu_holds_no_more_rows_than_there_is_room() -> None:
    """Of 100 MiB for pages and rows, 256 rows of 13 blocks would take twice as much."""
    made = beside_a_gpu([Length(100, 100)] * 256, gpu_mib=100, cpu_mib=100)
    found = Steady(made).estimate(Cut(2, 256, 256, 512), Shares(cpu=1.0))
    assert found is not None and found.rows == pytest.approx((100 - 32) * MIB / (11 * BLOCK), rel=0.01)


def test_pages_give_way_to_kv_on_the_cpu_beside_a_gpu() -> None:
    def tok_s(cpu_mib: int) -> float:
        made = beside_a_gpu([Length(100, 100)] * 256, gpu_mib=100, cpu_mib=cpu_mib)
        slow = replace(made, machine=replace(made.machine, links={**made.machine.links, "disk→cpu": Link(1e8)}))
        found = Steady(slow).estimate(Cut(2, 256, 256, 512), Shares(cpu=1.0))
        assert found is not None and found.rows == 256
        return found.tok_s

    assert tok_s(300) < 0.7 * tok_s(1000)
