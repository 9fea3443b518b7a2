import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trace.made import coded, file_of, flags, random_bits

from penstock.errors import UserError
from penstock.trace.coded import CodedTrace
from penstock.trace.header import BLOCK_BYTES, encode_block
from penstock.trace.info import inspect
from penstock.trace.skip_trace import BitTrace, TraceShape
from penstock.trace.store import MemoryStore
from penstock.trace.synth import synth


@settings(max_examples=30, deadline=None)
@given(
    st.builds(TraceShape, st.integers(0, 140), st.integers(1, 70), st.integers(1, 3)), st.sampled_from([0, 0.2, 0.9, 1])
)
def test_counts_are_those_of_sets(shape: TraceShape, skip: float) -> None:
    trace = coded(random_bits(shape, skip))
    drawn, found = flags(trace), inspect(trace)
    for step in range(shape.steps):
        existing = shape.prefill_tokens + step
        for layer in range(shape.layers):
            assert found.skipped[step, layer] == drawn[step, layer].sum()
            if step + 1 < shape.steps:
                read, again = (set(np.flatnonzero(~drawn[n, layer, :existing])) for n in (step, step + 1))
                assert found.stayed[step, layer] == len(read & again)
            if layer + 1 < shape.layers:
                assert found.shared[step, layer] == (drawn[step, layer] & drawn[step, layer + 1]).sum()


def test_shares_of_a_small_trace() -> None:
    """Three tokens before it; two layers; the second skips what the first does, and one more."""
    steps = [([0], [0, 1]), ([0], [0, 3]), ([4], [4, 0])]
    bits = np.array([[[sum(1 << t for t in tokens)] for tokens in step] for step in steps], np.uint64)
    found = inspect(coded(BitTrace(TraceShape(3, 3, 2), bits)))
    assert found.skip == 9 / 24
    assert found.skip_of_layers == [3 / 12, 6 / 12]
    # layer 0 reads {1,2} and {1,2,3}, all of which stay; layer 1 reads {2}, then {1,2}, then {1,2,3}
    assert found.overlap_of_layers == [1.0, 1.0]
    assert found.skip_asked is None


def test_overlap_counts_only_what_was_there() -> None:
    """A token that exists from the next step on belongs to no read set before."""
    bits = np.array([[[0b01]], [[0b10]], [[0b100]]], np.uint64)
    found = inspect(coded(BitTrace(TraceShape(2, 3, 1), bits)))
    assert found.stayed.tolist() == [[0], [1]]  # {1} → {0, 2}: none; {0, 2} → {0, 1, 3}: one
    assert found.overlap == 1 / 3
    assert found.correlation is None


def test_a_made_trace_is_as_asked() -> None:
    found = inspect(synth(TraceShape(20_000, 30, 8), 0.3, correlation=0.5))
    assert found.skip_asked == 0.3
    assert found.skip == pytest.approx(0.3, abs=0.004)
    assert found.overlap == pytest.approx(0.9, abs=0.002)
    assert found.correlation == pytest.approx(0.5, abs=0.02)
    assert found.skip_of_steps.mean() == pytest.approx(found.skip, abs=1e-4)
    assert np.nanmean(found.overlap_of_steps) == pytest.approx(found.overlap, abs=1e-3)


def test_a_trace_that_reads_nothing_has_no_overlap() -> None:
    found = inspect(synth(TraceShape(100, 5, 2), 1))
    assert found.overlap is None and found.overlap_of_layers == [None, None] and found.correlation is None
    assert np.isnan(found.overlap_of_steps).all()
    assert json.loads(json.dumps(found.to_json()))["skip"] == 1.0


def test_one_step_of_one_layer_of_no_token() -> None:
    found = inspect(synth(TraceShape(0, 1, 1), 0.3))
    assert (found.skip, found.overlap, found.correlation) == (0.0, None, None)


def test_a_count_that_is_not_so_is_refused() -> None:
    data = file_of(coded(random_bits(TraceShape(100, 9, 2))))
    honest = CodedTrace.of(MemoryStore(data))
    contents = replace(honest.contents, skipped=honest.contents.skipped - 1)
    with pytest.raises(UserError, match="its header counts"):
        inspect(CodedTrace.of(MemoryStore(encode_block(honest.header, contents) + data[BLOCK_BYTES:])))


def test_progress_reaches_the_end() -> None:
    told: list[tuple[int, int]] = []
    inspect(synth(TraceShape(10, 100, 1), 0.3), lambda done, total: told.append((done, total)))
    assert told == [(64, 100), (100, 100)]


def test_large_steps_are_counted_in_smaller_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = synth(TraceShape(200, 70, 2), 0.3)
    whole = inspect(trace)
    monkeypatch.setattr("penstock.trace.info._WINDOW_BYTES", 3 * 8 * 2 * trace.shape.words)
    told: list[int] = []
    small = inspect(trace, lambda done, total: told.append(done))
    assert told[0] == 3
    for name in ("skipped", "stayed", "shared"):
        assert np.array_equal(getattr(small, name), getattr(whole, name))
