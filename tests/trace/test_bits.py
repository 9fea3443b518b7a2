import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.trace import bits

sets = st.sets(st.integers(0, 199))


@given(sets)
def test_tokens_become_the_bits_of_their_numbers(tokens: set[int]) -> None:
    words = bits.from_tokens(np.array(sorted(tokens), np.int64), 4)
    assert {t for t in range(256) if int(words[t // 64]) >> t % 64 & 1} == tokens
    assert bits.count(words) == len(tokens)


@given(st.integers(-3, 300), st.integers(1, 4))
def test_below_is_all_tokens_before(tokens: int, words: int) -> None:
    held = min(max(tokens, 0), 64 * words)
    assert bits.below(tokens, words).tolist() == bits.from_tokens(np.arange(held), words).tolist()


def test_counts_are_those_of_the_last_axis() -> None:
    held = np.array([[[0, 1], [3, 2**64 - 1]]], np.uint64)
    assert bits.counts(held).tolist() == [[1, 66]]


def test_older_numpy_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(0).integers(0, 2**63, (3, 5, 7)).astype(np.uint64)
    expected = bits.counts(drawn[:, ::2])
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert bits.counts(drawn[:, ::2]).tolist() == expected.tolist()
