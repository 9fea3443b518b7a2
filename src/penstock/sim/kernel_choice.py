"""The best of what could come in, in compiled code: those skipped in the fewest steps, as far as places go.

Candidates are chosen in whole groups of equal counts by halving, from a counter's highest plane down. They are items of
one layer, or whole tokens, where those of the row ALIKE take a place at every layer and loose ones one for each item
outside HBM.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from penstock.sim.kernel_bits import NO_TOKEN, keep_highest, ones
from penstock.sim.kernel_cache import part, piece
from penstock.sim.kernel_state import ALIKE, GROUP, LOOSE, LOOSE_PLACES, LOOSE_TOKENS, MISSED, REST


@part
def loose_places(s, w, tokens):
    """How many places some loose tokens of a word take."""
    count = 0
    for p in range(s.outside.shape[1]):
        count += ones(s.outside[w, p] & tokens) << p
    return count


@part
def places_for(g, s, row, words):
    """How many places the candidates of a row take; notes which are loose, word by word of LOOSE, and their places."""
    alike, listed, loose, places, count = s.row[ALIKE], s.row[LOOSE], s.row[LOOSE_TOKENS], s.row[LOOSE_PLACES], 0
    for w in range(words):
        count += ones(row[w] & alike[w])
    count *= g.token_places
    for i in range(g.loose_words):
        at = listed[i]  # unsigned: it cannot count from the end
        loose[i] = row[at] & ~alike[at]
        taken = loose_places(s, at, loose[i])
        places[i] = np.uint64(taken)
        count += taken
    return count


@part
def choose_best(g, s, planes, row, places, words):
    """Keep of a row the groups that have a place whole, and set REST to the next one; the places left for that.

    `places_for` has been asked about the row.
    """
    rest = s.row[REST]
    for w in range(words):
        rest[w] = row[w]
        row[w] = NO_TOKEN
    for p in range(len(planes) - 1, -1, -1):
        places = _halve(g, s, planes[p], row, places, words)
    return places


@piece
def keep_best_items(g, s, planes, row, places, in_flight_first, words):
    """Keep of a row of items the best, so many: within a group those in flight, if they go first, then the newest."""
    places = choose_best(g, s, planes, row, places, words)
    rest, later = s.row[REST], s.row[GROUP]
    if in_flight_first:
        for w in range(words):
            later[w] = ~s.row[MISSED, w]
        places = _halve(g, s, later, row, places, words)
    _keep_newest(rest, places, words)
    for w in range(words):
        row[w] |= rest[w]


@part
def _halve(g, s, later, row, places, words):
    """Give a row those of REST that a plane leaves out, if they have a place whole, or drop the others; places left."""
    rest, alike, count = s.row[REST], s.row[ALIKE], 0
    for w in range(words):
        count += ones(rest[w] & ~later[w] & alike[w])
    count = count * g.token_places + _loose_places_without(g, s, rest, later)
    if count > places:
        for w in range(words):
            rest[w] &= ~later[w]
        return places
    for w in range(words):
        row[w] |= rest[w] & ~later[w]
        rest[w] &= later[w]
    return places - count


@part
def _loose_places_without(g, s, rest, later):
    """How many places the loose tokens of REST take that are not in another row; most words have one such candidate."""
    listed, candidates, places, count = s.row[LOOSE], s.row[LOOSE_TOKENS], s.row[LOOSE_PLACES], 0
    for i in range(g.loose_words):
        at = listed[i]
        loose = rest[at] & ~later[at] & candidates[i]
        count += np.int64(places[i]) * (loose == candidates[i])  # no branch: which it is nobody can guess
        if (loose != candidates[i]) & (loose != NO_TOKEN):
            count += loose_places(s, at, loose)
    return count


@piece
def _keep_newest(row, count, words):
    """Keep the newest tokens of a row, so many."""
    while words > 0 and ones(row[words - 1]) <= count:
        words -= 1
        count -= ones(row[words])
    if words > 0:
        row[words - 1] = keep_highest(row[words - 1], count)
    for w in range(words - 1):
        row[w] = NO_TOKEN
