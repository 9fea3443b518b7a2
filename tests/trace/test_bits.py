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


def test_what_is_read_again_is_in_both_read_sets() -> None:
    draw, exist = np.random.default_rng(1), np.arange(62, 67)  # token 64 begins a word
    skipped = [[set(np.flatnonzero(draw.random(tokens) < 0.5)) for _ in range(2)] for tokens in exist.tolist()]
    held = np.array([[bits.from_tokens(np.array(sorted(ids)), 2) for ids in of_layers] for of_layers in skipped])
    read = [[set(range(n)) - ids for ids in of_layers] for n, of_layers in zip(exist.tolist(), skipped, strict=True)]
    both = [[len(read[i][layer] & read[i + 1][layer]) for layer in range(2)] for i in range(4)]
    assert bits.read_again(held, exist).tolist() == both
    assert bits.read_again(held[:1], exist[:1]).shape == (0, 2)
