import math
from pathlib import Path

import numpy as np
import pytest
from tests.trace.made import all_bits, flags

import penstock.trace.synth
from penstock.errors import UserError
from penstock.trace.coded import CodedTrace
from penstock.trace.skip_trace import TraceShape
from penstock.trace.synth import synth

# 64 layers of chains of their own are as good as many traces: 2^21 chains, and errors of parts in a thousand
SHAPE = TraceShape(32768, 12, 64)
SMALL = TraceShape(300, 80, 4)


def skipping(shape: TraceShape, skip: float, **more: float) -> np.ndarray:
    """[steps, layers, prefill tokens] of a trace in which every token may be skipped."""
    trace = synth(shape, skip, sinks=0, recent=0, **more)  # type: ignore[arg-type]  # numbers all
    return flags(trace)[:, :, : shape.prefill_tokens]


@pytest.mark.parametrize(("skip", "overlap"), [(0.3, 0.9), (0.6, 0.9), (0.95, 0.6), (0.85, 0.1), (0.05, 0.95)])
def test_skip_level_and_overlap_are_those_asked(skip: float, overlap: float) -> None:
    drawn = skipping(SHAPE, skip, overlap=overlap, correlation=0)
    assert drawn.mean(axis=(1, 2)) == pytest.approx(np.full(SHAPE.steps, skip), abs=0.002)  # from the first step on
    reads, again = ~drawn[:-1], ~drawn[1:]
    assert (reads & again).sum() / reads.sum() == pytest.approx(overlap, abs=0.002)
    returned = (~reads & again).sum() / (~reads).sum()
    assert returned == pytest.approx((1 - overlap) * (1 - skip) / skip, abs=0.003)


def test_a_chain_forgets_all_but_its_last_state() -> None:
    drawn = skipping(SHAPE, 0.4, correlation=0)
    before, now, after = drawn[:-2], drawn[1:-1], drawn[2:]
    for state in (False, True):
        chances = [after[(now == state) & (before == earlier)].mean() for earlier in (False, True)]
        assert chances[0] == pytest.approx(chances[1], abs=0.003)


@pytest.mark.parametrize("correlation", [0, 0.3, 0.5, 1])
def test_any_two_layers_correlate_as_asked(correlation: float) -> None:
    drawn = skipping(TraceShape(1 << 18, 3, 4), 0.3, correlation=correlation)
    for step in drawn:
        found = np.corrcoef(step)[np.triu_indices(4, 1)]
        assert found == pytest.approx(np.full(6, correlation), abs=0.012)


def test_tokens_are_drawn_each_by_itself() -> None:
    step = skipping(SHAPE, 0.5, correlation=0)[3].astype(float)
    for distance in (1, 63, 64, 128):
        found = np.corrcoef(step[:, :-distance].ravel(), step[:, distance:].ravel())[0, 1]
        assert abs(found) < 0.004
    later = skipping(SHAPE, 0.5, correlation=0, overlap=0.5)  # at which a chain forgets its state at once
    assert abs(np.corrcoef(later[0].ravel(), later[1].ravel())[0, 1]) < 0.004


def test_sinks_and_the_recent_window_are_read() -> None:
    drawn = flags(synth(SMALL, 0.6, sinks=5, recent=20, seed=3))
    assert not drawn[:, :, :5].any()
    for step, skipped in enumerate(drawn):
        assert not skipped[:, SMALL.prefill_tokens + step - 20 :].any()
    left = [drawn[step, :, SMALL.prefill_tokens + step - 21] for step in range(SMALL.steps)]
    assert np.mean(left) == pytest.approx(0.6, abs=0.15)  # at once in the stationary state
    assert synth(SMALL, 0.6).realised_skip < 0.6
    assert not flags(synth(TraceShape(3, 30, 2), 0.9, overlap=0.9, sinks=40))[:, :, :33].any()


def test_nothing_and_everything() -> None:
    assert not all_bits(synth(SMALL, 0)).any()
    assert synth(SMALL, 1).realised_skip == 1.0
    kept = synth(SMALL, 1, sinks=4, recent=16)
    assert kept.contents.skipped == SMALL.layers * sum(n - 20 for n in range(300, 380))
    same = flags(synth(SMALL, 0.5, overlap=1, recent=0))
    assert (same[0, :, :300] == same[-1, :, :300]).all() and 0.4 < same[0, :, 4:300].mean() < 0.6


def test_the_seed_decides_and_chunks_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = synth(SMALL, 0.3, seed=1), synth(SMALL, 0.3, seed=2)
    assert not np.array_equal(all_bits(one), all_bits(other))
    assert synth(SMALL, 0.3, seed=1) == one
    in_file = synth(SMALL, 0.3, seed=1, path=tmp_path / "a.skip")
    assert CodedTrace.open(tmp_path / "a.skip") == in_file and in_file.contents == one.contents
    monkeypatch.setattr(penstock.trace.synth, "chunk_steps_for", lambda layers, words: 7)
    chunked = synth(SMALL, 0.3, seed=1)
    assert chunked.contents.chunk_steps == 7
    assert np.array_equal(all_bits(chunked), all_bits(one))


def test_a_longer_trace_begins_with_the_shorter() -> None:
    short, long = synth(SMALL, 0.3), synth(TraceShape(300, 150, 4), 0.3)
    assert np.array_equal(flags(short), flags(long)[:80, :, :380])


def test_the_same_numbers_everywhere() -> None:
    """What a seed makes is part of the format: results are compared across machines."""
    assert synth(SMALL, 0.3, seed=5).contents.skipped == 30_139


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    synth(SMALL, 0.3, progress=lambda done, total: told.append((done, total)))
    assert told == [(step, 80) for step in range(1, 81)]


@pytest.mark.parametrize(
    ("skip", "more", "said"),
    [
        (0.05, {}, "ask for an overlap of 0.948 or more"),
        (0.3, {"overlap": 0.5}, "ask for an overlap of 0.572 or more"),
        (-0.1, {}, "skip is -0.1"),
        (1.5, {}, "skip is 1.5"),
        (math.nan, {}, "skip is nan"),
        (0.3, {"overlap": 1.1}, "overlap is 1.1"),
        (0.3, {"correlation": -1}, "correlation is -1"),
        (0.3, {"sinks": -1}, "sinks is -1"),
        (0.3, {"recent": -1}, "recent is -1"),
        (0.3, {"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_is_one_line(skip: float, more: dict[str, float], said: str) -> None:
    with pytest.raises(UserError) as caught:
        synth(SMALL, skip, **more)  # type: ignore[arg-type]  # numbers all
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [TraceShape(-1, 1, 1), TraceShape(1, 0, 1), TraceShape(1, 1, 0)])
def test_a_shape_without_anything_is_refused(shape: TraceShape) -> None:
    with pytest.raises(UserError, match="needs a step and a layer"):
        synth(shape, 0.3)


def test_the_least_overlap_that_is_named_is_allowed() -> None:
    for skip, overlap in ((0.05, 0.948), (0.3, 0.572), (0.4, 1 - 2 / 3)):
        assert synth(SMALL, skip, overlap=overlap).contents.steps == 80


def test_a_step_that_memory_would_not_hold_is_refused():
    with pytest.raises(UserError, match=r"2 layers × 99,999,999,999 tokens are 23\.3 GiB"):
        synth(TraceShape(99_999_999_995, 4, 2), 0.5)
