"""What a migration's window says of every token, made once for all pairs that go over the same run of steps."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from typing import NamedTuple

import numpy as np

from penstock.sim.kernel_bits import EVERY, exchange, where_equal
from penstock.sim.kernel_cache import kept
from penstock.sim.kernel_state import PAST_WINDOW, Given, Words
from penstock.sim.windows import Window


class Look(NamedTuple):
    """The steps that a migration looks at, counted from the present one; which tokens it names, and if others rank."""

    begin: int
    end: int
    every: bool  # tokens that every one of these steps skips, else those that any does
    ranks: bool

    @property
    def steps(self) -> int:
        """How many they are where the trace does not cut them."""
        return self.end - self.begin + 1


class Seen(NamedTuple):
    """What a look sees from every (step, layer) of a run.

    named: [steps, layers, words] the tokens that the migration names. skips: [steps, layers, planes, words] in how many
    of its steps a token is skipped, as far as tell apart those that are not skipped in all of them.
    """

    named: Words
    skips: Words


def seen(window: Window, look: Look | None, prefill_tokens: int) -> Seen:
    """What a look sees in a window; nothing, if there is none."""
    return window.once(look, lambda: _seen(window, look, prefill_tokens))


def look_of(g: Given) -> Look | None:
    """What the migration of a run looks at, besides the present step."""
    if not g.window:
        return None
    if g.migration == PAST_WINDOW:
        return Look(1 - g.window, 0, bool(g.every), ranks=False)
    return Look(1, g.window, every=True, ranks=True)


def _seen(window: Window, look: Look | None, prefill_tokens: int) -> Seen:
    _, layers, words = window.bits.shape
    if look is None:
        return Seen(read_only(np.empty((0, layers, words), np.uint64)), np.empty((0, layers, 0, words), np.uint64))
    planes = (look.steps - 1).bit_length() if look.ranks else 0
    skips = np.empty((window.steps, layers, planes, words), np.uint64)
    if look.steps == 1:
        first = window.lead + look.begin
        return Seen(read_only(window.bits[first : first + window.steps]), skips)
    named = np.empty((window.steps, layers, words), np.uint64)
    steps = len(window.skip_counts)
    counter, room = np.empty((look.steps.bit_length(), words), np.uint64), np.empty((2, words), np.uint64)
    nothing = read_only(np.zeros(words, np.uint64))
    places = window.lead, window.first, steps, prefill_tokens, look.begin, look.end
    _count(read_only(window.bits), *places, look.every, nothing, counter, room, named, skips)
    return Seen(read_only(named), skips)


def read_only(bits: Words) -> Words:
    """The same words for reading alone: compiled code has one type for what a trace lends and for copies of it."""
    view = np.ascontiguousarray(bits, np.uint64).view()
    view.setflags(write=False)
    return view


@kept
def _count(bits, lead, first, steps, prefill, begin, end, every, nothing, counter, room, named, skips):
    """Fill `named` and `skips` by a counter [planes, words] that goes along with the window; two rows to work in."""
    for layer in range(bits.shape[1]):
        for p in range(len(counter)):
            for w in range(bits.shape[2]):
                counter[p, w] = 0
        left = entered = max(first + begin, 0)  # the first step that is counted, and the next one to be
        for step in range(first, first + len(named)):
            low, high = max(step + begin, 0), min(step + end, steps - 1)
            words = min((prefill + high) // 64 + 1, bits.shape[2])
            while entered <= high or left < low:
                come, gone = nothing, nothing
                if entered <= high:
                    come = bits[lead + entered - first, layer]
                    entered += 1
                if left < low:
                    gone = bits[lead + left - first, layer]
                    left += 1
                exchange(counter, come, gone, room[0], room[1], words)
            row = named[step - first, layer]
            where_equal(counter, high + 1 - low if every else 0, row, words)
            if not every:
                for w in range(words):
                    row[w] ^= EVERY
            for p in range(skips.shape[2]):
                for w in range(words):
                    skips[step - first, layer, p, w] = counter[p, w]
