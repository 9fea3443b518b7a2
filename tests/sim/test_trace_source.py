"""Where traces come from: one that processes share is made once."""

from pathlib import Path

import numpy as np

from penstock.sim.given import TraceRule
from penstock.sim.trace_source import source_of
from penstock.trace.coded import CodedTrace
from penstock.trace.skip_trace import TraceShape

SHAPE = TraceShape(prefill_tokens=100, steps=6, layers=2)


def bits_of(trace: CodedTrace) -> object:
    return np.concatenate([bits.copy() for _, bits in trace.windows(4)])


def test_a_shared_trace_is_made_once_and_read_by_others(tmp_path: Path) -> None:
    source = source_of(SHAPE, TraceRule(), 0.4, None)
    made = source.open(tmp_path)
    (file,) = tmp_path.glob("*.skip")
    before = file.stat().st_mtime_ns
    again = source.open(tmp_path)
    assert file.stat().st_mtime_ns == before
    np.testing.assert_array_equal(bits_of(made), bits_of(source.open()))
    np.testing.assert_array_equal(bits_of(again), bits_of(made))


def test_shared_traces_of_other_levels_and_seeds_are_others(tmp_path: Path) -> None:
    for level, rule in ((0.4, TraceRule()), (0.5, TraceRule()), (0.4, TraceRule(seed=1))):
        source_of(SHAPE, rule, level, None).open(tmp_path)
    assert len(list(tmp_path.glob("*.skip"))) == 3
