"""Two-state Markov chains, 64 to a word: compiled, because their draws outweigh all else in making a trace.

A chain's next state compares one uniform number with a threshold that depends on its state. Sixty-four such comparisons
are bitwise operations on one random word per binary digit of the thresholds. The words are hashes of where they are
used, so nothing depends on the order of work.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

DIGITS = 16  # of a probability, in binary: within 1/131,072 of what is asked

Advance = Callable[[NDArray[np.uint64], int, int, np.uint64, int, int], None]
Choose = Callable[[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]], None]


def threshold(probability: float) -> int:
    """A probability in 2^-DIGITS."""
    return round(probability * (1 << DIGITS))


def advance(
    states: NDArray[np.uint64], start: int, stop: int, key: np.uint64, set_if_clear: float, set_if_set: float
) -> None:
    """Take all chains of the words start … stop − 1 a step further.

    states: uint64 [rows, words], changed in place. key: of this step; another key draws other numbers. The others are
    the probabilities that a bit is set afterwards, where it is clear and where it is set.
    """
    if start < stop:
        _compiled()[0](states, start, stop, key, threshold(set_if_clear), threshold(set_if_set))


def choose(
    states: NDArray[np.uint64], following: NDArray[np.uint64], allowed: NDArray[np.uint64], chosen: NDArray[np.uint64]
) -> None:
    """Set every row's first words to the common chain where a bit follows it, else to the row's own.

    uint64 all: states [1 + rows, words or more], the common chain first; following, chosen [rows, words or more];
    allowed [words], the bits that may be set.
    """
    _compiled()[1](states, following, allowed, chosen)


@cache
def _compiled() -> tuple[Advance, Choose]:
    from numba import types  # half a second, and only where chains are run

    from penstock.compiled.kernels import compiled

    matrix, number = types.Array(types.uint64, 2, "C"), types.uint64
    advances = types.void(matrix, types.intp, types.intp, number, types.int64, types.int64)
    chooses = types.void(matrix, matrix, types.Array(number, 1, "C"), matrix)
    return compiled(_advance, advances), compiled(_choose, chooses)


def _advance(
    states: NDArray[np.uint64], start: int, stop: int, key: np.uint64, set_if_clear: int, set_if_set: int
) -> None:
    none, ones = np.uint64(0), ~np.uint64(0)
    # splitmix64 (Steele, Lea and Flood, 2014); plain integers beside unsigned ones would make numba compute in floats
    golden = np.uint64(0x9E3779B97F4A7C15)
    first_factor, second_factor = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
    one_shift, two_shift, three_shift = np.uint64(30), np.uint64(27), np.uint64(31)
    words = stop - start
    for_clear, for_set = np.empty(words, np.uint64), np.empty(words, np.uint64)
    for row in range(states.shape[0]):
        for_clear[:] = ones if set_if_clear >> DIGITS else none
        for_set[:] = ones if set_if_set >> DIGITS else none
        for digit in range(DIGITS):  # the least significant first
            clear_digit = ones if (set_if_clear >> DIGITS | set_if_clear >> digit) & 1 else none
            set_digit = ones if (set_if_set >> DIGITS | set_if_set >> digit) & 1 else none
            # hashed once for where the row's digit begins, and once for each word
            seed = key + np.uint64(row * DIGITS + digit + 1) * second_factor
            seed = (seed ^ (seed >> one_shift)) * first_factor
            seed = (seed ^ (seed >> two_shift)) * second_factor
            seed = seed ^ (seed >> three_shift)
            counter = seed + np.uint64(start) * golden
            for word in range(words):
                drawn = (counter ^ (counter >> one_shift)) * first_factor
                drawn = (drawn ^ (drawn >> two_shift)) * second_factor
                drawn = drawn ^ (drawn >> three_shift)
                counter += golden
                # the majority of three: a digit of 1 leaves "below" unless the number's digit and the rest say no
                for_clear[word] = (for_clear[word] & drawn) | (clear_digit & (for_clear[word] | drawn))
                for_set[word] = (for_set[word] & drawn) | (set_digit & (for_set[word] | drawn))
        for word in range(words):
            state = states[row, start + word]
            states[row, start + word] = (for_set[word] & state) | (for_clear[word] & ~state)


def _choose(
    states: NDArray[np.uint64], following: NDArray[np.uint64], allowed: NDArray[np.uint64], chosen: NDArray[np.uint64]
) -> None:
    for row in range(chosen.shape[0]):
        for word in range(allowed.shape[0]):
            own = states[1 + row, word]
            chosen[row, word] = (own ^ (own ^ states[0, word]) & following[row, word]) & allowed[word]
