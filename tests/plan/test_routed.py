"""Tokens sent to experts, where what they touch and meet can be counted by hand."""

import math
import random
from dataclasses import replace
from statistics import mean

import pytest
from tests.plan.made import machine, shape

from penstock.machine.machine import Curve, Processor
from penstock.plan.cost import SweepCost
from penstock.plan.load import Load, Spans
from penstock.plan.policy import Policy, Shares
from penstock.plan.routed import Routed
from penstock.plan.shape import PageShape

FLAT = Processor({"float32": Curve.flat(1e9)}, Curve.flat(1e9), 1e9, activation_bytes_per_s=7e9, expert_s=1e-3)


def test_one_token_touches_the_experts_it_chose_and_meets_them_alone() -> None:
    one = Routed(1, 8, 128)
    assert one.touched == pytest.approx(8 / 128)
    assert one.met == pytest.approx(1)
    assert one.visited(128) == 1


def test_all_experts_chosen_meet_all_tokens() -> None:
    every = Routed(10, 4, 4)
    assert (every.touched, every.met) == (1, 10)


def test_as_many_are_touched_and_met_as_lots_say() -> None:
    draw = random.Random(0)
    tokens, chosen, experts = 48, 8, 128
    touched = []
    for _ in range(200):
        sent = [expert for _ in range(tokens) for expert in draw.sample(range(experts), chosen)]
        touched.append(len(set(sent)) / experts)
    routed = Routed(tokens, chosen, experts)
    assert routed.touched == pytest.approx(mean(touched), rel=0.01)
    assert routed.met * routed.touched * experts == pytest.approx(tokens * chosen)


def test_products_in_tiles_take_as_long_as_lots_say() -> None:
    """A kernel that takes 16 tokens at a time, and experts that get 32 of them on average: many need a third tile."""
    draw = random.Random(0)
    tile_s = 1e-6
    curve = Curve(tuple((float(n), 2 * n / (tile_s * math.ceil(n / 16))) for n in range(1, 129)))
    tokens, experts = 512, 16
    taken = []
    for _ in range(200):
        sent = [draw.randrange(experts) for _ in range(tokens)]
        taken += [tile_s * math.ceil(sent.count(expert) / 16) for expert in range(experts) if expert in sent]
    assert mean(taken) > 1.2 * 2 * tile_s  # two tiles are what the mean of 32 would take
    assert Routed(tokens, 1, experts).product_s(curve) == pytest.approx(mean(taken), rel=0.1)


def test_each_touched_expert_costs_its_calls_and_each_token_its_way_there_and_back() -> None:
    routed = Routed(4, 2, 2)
    assert routed.besides_s(2, 1000, FLAT) == pytest.approx(2 * 1e-3 + 2 * 4 * 7 * 1000 / 7e9)


def test_a_sweep_of_experts_is_the_longer_the_more_of_them_its_tokens_touch() -> None:
    dense = shape(2)
    pages = [PageShape(page.nbytes, page.weights, page.layer, experts=64) for page in dense.pages]
    many = replace(dense, pages=pages, experts=64, experts_chosen=4)
    cpu = replace(machine().processors["cpu"], products={"float32": Curve.flat(1e12)}, expert_s=1e-3)
    here = Shares(cpu=1.0)
    policy = Policy(here, here, here, rows=8, sweep_tokens=8, batch_tokens=8)

    def seconds(expert_s: float) -> float:
        host = replace(machine(), processors={"cpu": replace(cpu, expert_s=expert_s)})
        return SweepCost(many, host, policy, ["cpu"] * len(pages)).price([Load((Spans(8, 9, 1),), 8)]).seconds

    touched = 64 * len(pages) * Routed(8, 4, 64).touched
    assert seconds(1e-3) - seconds(0.0) == pytest.approx(1e-3 * touched)
