import numpy as np
import pytest

from penstock.sim.given import TraceRule
from penstock.sim.trace_facts import trace_facts
from penstock.sim.trace_source import bits_of, source_of
from penstock.trace.skip_trace import TraceShape


def test_counts_are_those_of_sets() -> None:
    shape = TraceShape(prefill_tokens=70, steps=9, layers=3)
    draw = np.random.default_rng(0)
    sets = tuple(
        tuple(tuple(np.flatnonzero(draw.random(70 + step) < 0.4).tolist()) for _ in range(3)) for step in range(9)
    )
    reads = [[set(range(70 + step)) - set(ids) for ids in layers] for step, layers in enumerate(sets)]
    skipped = sum(len(ids) for layers in sets for ids in layers)
    kept = sum(len(reads[step][layer] & reads[step + 1][layer]) for step in range(8) for layer in range(3))
    facts = trace_facts(bits_of(sets, shape))
    assert facts.skip == skipped / sum(3 * (70 + step) for step in range(9))
    assert facts.overlap == kept / sum(len(read) for layers in reads[:-1] for read in layers)


def test_a_single_step_overlaps_with_nothing() -> None:
    assert trace_facts(bits_of((((0,),),), TraceShape(2, 1, 1))).overlap is None


def test_a_synthetic_trace_comes_near_what_was_asked() -> None:
    shape = TraceShape(prefill_tokens=400, steps=40, layers=2)
    source = source_of(shape, TraceRule(overlap=0.8, sinks=0, recent=0), 0.4, None)
    facts = trace_facts(source.open())
    assert facts.skip == pytest.approx(0.4, abs=0.03)
    assert facts.overlap == pytest.approx(0.8, abs=0.03)


def test_nothing_is_skipped_at_level_zero_and_all_at_level_one() -> None:
    shape = TraceShape(prefill_tokens=30, steps=5, layers=2)
    for level in (0.0, 1.0):
        assert trace_facts(source_of(shape, TraceRule(), level, None).open()).skip == level
