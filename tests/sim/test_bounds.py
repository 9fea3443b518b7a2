import random
from fractions import Fraction

import numpy as np
import pytest
from tests.sim.cases import Limits, random_case, scenario_of, trace_of
from tests.sim.oracle_case import Case
from tests.sim.oracle_state import State

from penstock.sim.bounds import bounds
from penstock.sim.memories import Duplex, Memories
from penstock.sim.read_sets import read_mask
from penstock.sim.scenario import Scenario
from penstock.sim.trace_facts import trace_facts
from penstock.trace.skip_trace import BitTrace, TraceShape

CASES = [random_case(random.Random(seed), Limits(layers=3, prefill=90, decode=20)) for seed in range(12)]


def by_the_page(case: Case) -> tuple[Fraction, Fraction, Fraction]:
    """LB0, LB1 and LB1 at omega, sum by sum."""
    start = State(case)
    b_e = min(case.b_r, case.b_int)
    both = case.b_h + b_e
    weights = case.layers * (case.attn_bytes + case.mlp_bytes)
    lb0 = lb1 = at_weights = Fraction(0)
    for n in range(case.prefill, case.last + 1):
        kv = [case.kv_bytes * len(case.reads(n, layer)) for layer in range(case.layers)]
        read = weights + sum(kv)
        lb0 += Fraction(read, both)
        lb1 += max(Fraction(read, both), Fraction(read - case.capacity, b_e))
        attention = mlp = Fraction(0)
        for layer in range(case.layers):
            w_a, w_m = start.w_a[layer], start.w_m[layer]
            rest_a, rest_m = case.attn_bytes - w_a, case.mlp_bytes - w_m
            attention += max(
                Fraction(case.attn_bytes + kv[layer], both), Fraction(w_a, case.b_h), Fraction(rest_a, b_e)
            )
            mlp += max(Fraction(case.mlp_bytes, both), Fraction(w_m, case.b_h), Fraction(rest_m, b_e))
        beyond = max(0, sum(kv) - case.capacity + start.weights_held)
        from_ext = case.layers * case.attn_bytes - sum(start.w_a) + beyond
        at_weights += mlp + max(attention, Fraction(from_ext, b_e))
    return lb0, lb1, at_weights


@pytest.mark.parametrize("case", CASES)
def test_bounds_are_the_sums_that_the_page_defines(case: Case) -> None:
    found = bounds(scenario_of(case), trace_facts(trace_of(case)).reads)
    expected = [float(value) for value in by_the_page(case)]
    assert [found.lb0_s, found.lb1_s, found.lb1_at_weights_s] == pytest.approx(expected, rel=1e-12)
    assert found.lb0_s <= found.lb1_s * (1 + 1e-12) and found.lb1_s <= found.lb1_at_weights_s * (1 + 1e-12)


@pytest.mark.parametrize("case", CASES[:6])
def test_read_sets_are_all_older_tokens_that_are_not_skipped(case: Case) -> None:
    trace = trace_of(case)
    mask, counts = read_mask(trace), trace_facts(trace).reads
    for step, of_layers in enumerate(case.all_reads):
        for layer, tokens in enumerate(of_layers):
            assert set(np.flatnonzero(mask[step, layer])) == tokens
            assert counts[step, layer] == len(tokens)


def test_counts_do_not_depend_on_the_windows_a_trace_is_read_in() -> None:
    rng = np.random.default_rng(0)
    shape = TraceShape(prefill_tokens=70_000, steps=50, layers=5)  # longer than a window
    bits = rng.integers(0, 1 << 63, (shape.steps, shape.layers, shape.words), np.uint64)
    bits[:, :, 1093:] = 0  # the prefill ends in word 1093
    counts = trace_facts(BitTrace(shape, bits)).reads
    step, layer = 49, 3
    assert counts[step, layer] == 70_049 - sum(int(word).bit_count() for word in bits[step, layer])


def test_weights_that_take_less_than_is_read_of_them_leave_the_rest_to_kv() -> None:
    """10 items are read from 4 free places; weights of 1000 bytes take 200."""
    scenario = Scenario(
        name="legacy",
        memories=Memories(600, 1000, 100, 100, 200, Duplex.SERIAL),
        layers=1,
        attn_bytes=400,
        mlp_bytes=600,
        kv_bytes=100,
        prefill_tokens=10,
        decode_tokens=1,
        weight_capacity_bytes=200,
    )
    found = bounds(scenario, np.full((1, 1), 10))
    assert found.lb0_s == pytest.approx(2000 / 1100)
    assert found.lb1_s == pytest.approx(600 / 100)
    assert found.lb1_at_weights_s == pytest.approx(600 / 1000 + 600 / 100)
