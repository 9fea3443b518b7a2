"""The best of what could come in, in compiled code: those skipped in the fewest steps, as far as places go.

Candidates are chosen in whole groups of equal counts by halving, from a counter's highest plane down. They are items of
one layer, or whole tokens, where those of the row ALIKE take a place at every layer and loose ones one for each item
outside HBM.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from penstock.sim.kernel_bits import NO_TOKEN, bit, keep_highest, ones
from penstock.sim.kernel_cache import part, piece
from penstock.sim.kernel_state import ALIKE, GROUP, HBM, LOOSE, MISSED, REST


@part
def absent(s, other, w, tokens, layer, token):
    """Of loose tokens of a word those whose item at a layer exists and is not in HBM; `token` exists below `layer`."""
    outside = tokens & ~s.row[HBM + other, w]
    if other >= layer and w == token >> 6:
        outside &= ~bit(token & 63)
    return outside


@part
def loose_places(g, s, w, tokens, layer, token):
    """How many places the loose ones of some tokens of a word take."""
    loose, count = tokens & ~s.row[ALIKE, w], 0
    if loose != NO_TOKEN:
        for other in range(g.layers):
            count += ones(absent(s, other, w, loose, layer, token))
    return count


@part
def places_for(g, s, row, layer, token, words):
    """How many places the candidates of a row take."""
    alike, count = s.row[ALIKE], 0
    for w in range(words):
        count += ones(row[w] & alike[w])
    count *= g.token_places
    for i in range(g.loose_words):
        at = np.int64(s.row[LOOSE, i])
        count += loose_places(g, s, at, row[at], layer, token)
    return count


@part
def choose_best(g, s, planes, row, places, layer, token, words):
    """Keep of a row the groups that have a place whole, and set REST to the next one; the places left for that."""
    rest = s.row[REST]
    for w in range(words):
        rest[w] = row[w]
        row[w] = NO_TOKEN
    for p in range(len(planes) - 1, -1, -1):
        places = _halve(g, s, planes[p], row, places, layer, token, words)
    return places


@piece
def keep_best_items(g, s, planes, row, places, in_flight_first, layer, token, words):
    """Keep of a row of items the best, so many: within a group those in flight, if they go first, then the newest."""
    places = choose_best(g, s, planes, row, places, layer, token, words)
    rest, later = s.row[REST], s.row[GROUP]
    if in_flight_first:
        for w in range(words):
            later[w] = ~s.row[MISSED, w]
        places = _halve(g, s, later, row, places, layer, token, words)
    _keep_newest(rest, places, words)
    for w in range(words):
        row[w] |= rest[w]


@part
def _halve(g, s, later, row, places, layer, token, words):
    """Give a row those of REST that a plane leaves out, if they have a place whole, or drop the others; places left."""
    rest, alike, count = s.row[REST], s.row[ALIKE], 0
    for w in range(words):
        count += ones(rest[w] & ~later[w] & alike[w])
    count *= g.token_places
    for i in range(g.loose_words):
        at = np.int64(s.row[LOOSE, i])
        count += loose_places(g, s, at, rest[at] & ~later[at], layer, token)
    if count > places:
        for w in range(words):
            rest[w] &= ~later[w]
        return places
    for w in range(words):
        row[w] |= rest[w] & ~later[w]
        rest[w] &= later[w]
    return places - count


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
