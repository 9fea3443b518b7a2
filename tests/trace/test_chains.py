import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.trace import chains


def plain_advance(
    states: np.ndarray, start: int, stop: int, key: int, set_if_clear: float, set_if_set: float
) -> np.ndarray:
    """The same, number by number: a token's number is made of one bit of each of the words drawn for its word."""
    mask = 2**64 - 1

    def mixed(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
        return value ^ value >> 31

    new = states.copy()
    for row in range(len(states)):
        seeds = [
            mixed(key + (row * chains.DIGITS + digit + 1) * 0x94D049BB133111EB & mask) for digit in range(chains.DIGITS)
        ]
        for word in range(start, stop):
            drawn = [mixed(seed + word * 0x9E3779B97F4A7C15 & mask) for seed in seeds]
            result = 0
            for bit in range(64):
                # bits of 0 count: a number is below a threshold where the first digit that differs is 0 in it
                number = sum((1 - (digits >> bit & 1)) << digit for digit, digits in enumerate(drawn))
                was = int(states[row, word]) >> bit & 1
                below = number < chains.threshold(set_if_set if was else set_if_clear)
                result |= below << bit
            new[row, word] = result
    return new


probabilities = st.sampled_from([0.0, 1.0, 0.5, 0.1, 2**-16, 1 - 2**-16]) | st.floats(0, 1)


@settings(max_examples=25, deadline=None)  # the first call compiles
@given(st.integers(0, 2**64 - 1), probabilities, probabilities, st.integers(0, 3), st.integers(0, 3))
def test_each_bit_compares_one_number(key: int, enters: float, stays: float, start: int, stop: int) -> None:
    states = np.random.default_rng(key).integers(0, 2**63, (2, 3)).astype(np.uint64)
    expected = plain_advance(states, start, stop, key, enters, stays) if start < stop else states.copy()
    chains.advance(states, start, stop, np.uint64(key), enters, stays)
    assert states.tolist() == expected.tolist()


@pytest.mark.parametrize("probability", [0.0, 1.0, 0.5, 0.1, 0.937])
def test_as_many_are_set_as_asked(probability: float) -> None:
    states = np.zeros((8, 4096), np.uint64)
    chains.advance(states, 0, 4096, np.uint64(9), probability, probability)
    assert np.bitwise_count(states).mean() / 64 == pytest.approx(probability, abs=0.0015)


def test_bits_follow_the_common_chain_or_their_own_where_they_are_allowed() -> None:
    rng = np.random.default_rng(3)
    states, following, allowed = (rng.integers(0, 2**64, shape, np.uint64) for shape in ((4, 6), (3, 6), (5,)))
    chosen = np.zeros((3, 6), np.uint64)
    chains.choose(states, following, allowed, chosen)
    common, own = states[0, :5], states[1:, :5]
    assert (chosen[:, :5] == (common & following[:, :5] | own & ~following[:, :5]) & allowed).all()
    assert not chosen[:, 5].any()
