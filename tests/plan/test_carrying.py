"""Bytes on links, told by hand."""

from dataclasses import replace

import pytest
from tests.plan.test_attending import DECODE, LAYER, POLICY
from tests.plan.test_attending import MACHINE as BESIDE

from penstock.machine.machine import Link, Machine
from penstock.plan.attending import Attending
from penstock.plan.carrying import Carrying
from penstock.plan.policy import Policy, Shares
from penstock.plan.shape import ModelShape, PageShape
from penstock.plan.types import Footprint

DISK = {"disk→cpu": Link(1e8, latency_s=1e-3, kv_bytes_per_s=1e7), "cpu→disk": Link(1e8)}
UP = {"cpu→gpu": Link(1e9), "gpu→cpu": Link(5e8)}
MACHINE = replace(BESIDE, memory={**BESIDE.memory, "disk": 1}, links={**UP, **DISK})  # type: ignore[dict-item]  # links
SHAPE = ModelShape("m", "float16", [], [LAYER], 1000, 0, 0, Footprint([], frozenset(), 0, 0, 0, 0, 16), 8, 2)


def carrying(policy: Policy = POLICY, machine: Machine = MACHINE) -> Carrying:
    return Carrying(SHAPE, machine, policy, Attending(machine, policy))


def test_pages_cross_every_link_on_their_way_up() -> None:
    page = PageShape(10**6, 1, 0)
    assert carrying().page(page, "gpu", 1) == {}
    assert carrying().page(page, "cpu", 1) == {"cpu→gpu": pytest.approx(1e-3)}
    assert carrying().page(page, "disk", 1) == {"cpu→gpu": pytest.approx(1e-3), "disk→cpu": pytest.approx(1.1e-2)}


def test_of_experts_come_those_that_tokens_are_sent_to() -> None:
    page = PageShape(10**6, 1, 0, experts=1)
    few, many = (carrying().page(page, "cpu", tokens)["cpu→gpu"] for tokens in (1, 1000))
    assert few == pytest.approx(1e-3 * (1 - (7 / 8) ** 2))
    assert many == pytest.approx(1e-3)


def test_kv_that_rests_elsewhere_is_read_and_what_is_new_written() -> None:
    assert carrying().kv(LAYER, DECODE) == {}
    half = carrying(replace(POLICY, kv=Shares(gpu=0.5, cpu=0.5))).kv(LAYER, DECODE)
    assert half["cpu→gpu"] == pytest.approx(0.5 * 4 * 9 * 100 / 1e9)
    assert half["gpu→cpu"] == pytest.approx(0.5 * 4 * 100 / 5e8)


def test_kv_blocks_have_a_rate_of_their_own() -> None:
    moved = carrying(replace(POLICY, kv=Shares(disk=1.0))).kv(LAYER, DECODE)
    assert moved["disk→cpu"] == pytest.approx(4 * 9 * 100 / 1e7)


def test_residual_streams_go_down_and_come_back() -> None:
    parked = carrying(replace(POLICY, activations=Shares(cpu=1.0))).activations(10)
    assert parked == {"gpu→cpu": pytest.approx(10 * 1000 / 5e8), "cpu→gpu": pytest.approx(10 * 1000 / 1e9)}
