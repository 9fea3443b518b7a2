"""Keys and pairs of queries and keys, against counting them one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.plan.load import Load, Spans, load_of, rounded, together
from penstock.schedule.types import Span


@given(first=st.integers(0, 60), count=st.integers(1, 40), window=st.none() | st.integers(1, 70))
def test_pairs_are_what_every_query_sees(first: int, count: int, window: int | None) -> None:
    seen = [min(position + 1, window or position + 1) for position in range(first, first + count)]
    assert Spans(3, first, count).pairs(window) == pytest.approx(3 * sum(seen))


@given(first=st.integers(0, 60), count=st.integers(1, 40), window=st.integers(1, 70))
def test_keys_are_read_once_a_span_and_no_further_back_than_a_window(first: int, count: int, window: int) -> None:
    assert Spans(2, first, count).keys(None) == 2 * (first + count)
    assert count <= Spans(1, first, count).keys(window) <= min(first + count, window + count)


def spans(*firsts: int, count: int = 1) -> list[Span]:
    return [Span(row, first, count, True) for row, first in enumerate(firsts)]


def test_decode_rows_are_joined_and_their_mean_is_kept() -> None:
    load = load_of(spans(100, 200, 300), windows=False)
    assert load.rows == load.samples == load.tokens == 3
    (joined,) = load.spans
    assert joined.first == pytest.approx(200, rel=0.02)
    assert len(load_of(spans(100, 200, 300)).spans) == 3  # a window may end between them


def test_prompts_and_decode_stay_apart() -> None:
    load = load_of([*spans(50, 60), *spans(0, 0, count=64)], windows=False)
    assert sorted((s.number, s.count) for s in load.spans) == [(2, 1), (2, 64)]
    assert load.tokens == 2 + 128


def test_equal_micro_batches_become_one_of_several_calls() -> None:
    one, other = load_of(spans(10, 10)), load_of(spans(10))
    both = together([one, other, one, one])
    assert {(load.calls, load.rows) for load in both} == {(3, 6), (1, 1)}
    assert together([one]) == (one,)


def test_lengths_are_rounded_to_a_fiftieth() -> None:
    assert rounded(17) == 17
    assert all(rounded(size) == pytest.approx(size, rel=0.0101) for size in range(21, 5000, 7))
    assert Load((Spans(1, rounded(1000), 1),), 1) == Load((Spans(1, rounded(1003), 1),), 1)
