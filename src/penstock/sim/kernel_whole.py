"""Whole tokens in compiled code, as sets: a token whose items all lie in the same memory takes one bit for all layers.

Such tokens are in the row ALIKE, those of them in HBM in INSIDE too, and State.hbm says nothing of them. The others are
loose: the newest token, whose items come to be layer by layer, and one that found places for a part of its items only.
The row LOOSE lists the words that may have loose tokens; State.outside counts the items of each outside HBM.
`c` is a step's bytes by kind, `g` a Given, `s` a State; `words` covers the tokens that exist.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from penstock.sim.kernel_bits import NO_TOKEN, bit, highest, ones
from penstock.sim.kernel_cache import part
from penstock.sim.kernel_choice import choose_best, loose_places, places_for
from penstock.sim.kernel_state import ALIKE, HBM, HELD, INSIDE, LOOSE, MISSED, READS, REST
from penstock.sim.kernel_traffic import count_ins, count_outs, free


@part
def begin_token(g, s, token):
    """A new token begins to be loose; the one before has all its items now."""
    if token > 0:
        _settle(g, s, (token - 1) >> 6, bit((token - 1) & 63))
    listed = g.loose_words
    g.loose_words = 0
    for i in range(listed):
        at = np.int64(s.row[LOOSE, i])
        if at < token >> 6 and ~s.row[ALIKE, at] != NO_TOKEN:
            _list_loose(g, s, at)
    _list_loose(g, s, token >> 6)
    _set_outside(s, token >> 6, bit(token & 63), 0)


@part
def _list_loose(g, s, w):
    for i in range(g.loose_words):
        if s.row[LOOSE, i] == np.uint64(w):
            return
    s.row[LOOSE, g.loose_words] = np.uint64(w)
    g.loose_words += 1


@part
def one_more_outside(s, w, item):
    """One more item of a loose token is outside HBM."""
    _set_outside(s, w, item, loose_places(s, w, item) + 1)


@part
def _set_outside(s, w, tokens, number):
    """So many items of each of these loose tokens of a word are outside HBM."""
    for p in range(s.outside.shape[1]):
        if number >> p & 1:
            s.outside[w, p] |= tokens
        else:
            s.outside[w, p] &= ~tokens


@part
def _settle(g, s, w, item):
    """A token that has all its items, and all in the same memory, is alike from now on."""
    if s.row[ALIKE, w] & item != NO_TOKEN:
        return
    outside = loose_places(s, w, item)
    if outside == g.layers:
        s.row[ALIKE, w] |= item
    elif outside == 0:
        _become_inside(g, s, w, item)


@part
def _become_inside(g, s, w, tokens):
    """Loose tokens whose items are all in HBM are alike from now on."""
    for other in range(g.layers):
        s.row[HBM + other, w] &= ~tokens
        s.layer[HELD, other] -= ones(tokens)
    s.row[ALIKE, w] |= tokens
    s.row[INSIDE, w] |= tokens
    g.tokens_inside += ones(tokens)


@part
def whole_outs(g, s, c, row, layer, token, words):
    """All items of the tokens of a row leave HBM."""
    alike, inside, reads = s.row[ALIKE], s.row[INSIDE], s.row[READS]
    count, read = 0, 0
    for w in range(words):
        gone = row[w] & inside[w]
        inside[w] ^= gone
        count += ones(gone)
        read += ones(gone & reads[w])
    g.tokens_inside -= count
    count *= g.layers
    for i in range(g.loose_words):
        at = np.int64(s.row[LOOSE, i])
        loose = row[at] & ~alike[at]
        if loose == NO_TOKEN:
            continue
        read += ones(loose & s.row[HBM + layer, at] & reads[at])
        for other in range(g.layers):
            gone = loose & s.row[HBM + other, at]
            count += ones(gone)
            s.layer[HELD, other] -= ones(gone)
            s.row[HBM + other, at] &= ~loose
        _set_outside(s, at, loose, layer)  # of the newest; the others are alike from now on
        alike[at] |= loose & ~bit(token & 63) if at == token >> 6 else loose
    count_outs(g, c, count, read)


@part
def whole_ins(g, s, c, planes, row, layer, token, words):
    """All items of the tokens of a row outside HBM come in as far as places go.

    Those that fewest steps skip come first, then the newest; within a token lower layers first.
    """
    places = free(g)
    wanted = places_for(g, s, row, words) if places > 0 else 0
    if wanted == 0:
        return
    if wanted > places:
        choose_best(g, s, planes, row, places, words)
    _come(g, s, c, row, layer, token, words)
    if wanted > places:
        _newest_come(g, s, c, s.row[REST], layer, token, words)


@part
def _absent(s, other, w, tokens, layer, token):
    """Of loose tokens of a word those whose item at a layer exists and is not in HBM; `token` exists below `layer`."""
    outside = tokens & ~s.row[HBM + other, w]
    if other >= layer and w == token >> 6:
        outside &= ~bit(token & 63)
    return outside


@part
def _come(g, s, c, row, layer, token, words):
    """Tokens that have a place for each of their items come in."""
    alike, inside, missed = s.row[ALIKE], s.row[INSIDE], s.row[MISSED]
    count, read = 0, 0
    for w in range(words):
        come = row[w] & alike[w]
        inside[w] |= come
        count += ones(come)
        read += ones(come & missed[w])
    g.tokens_inside += count
    count *= g.layers
    for i in range(g.loose_words):
        at = np.int64(s.row[LOOSE, i])
        loose = row[at] & ~alike[at]
        if loose == NO_TOKEN:
            continue
        read += ones(_absent(s, layer, at, loose, layer, token) & missed[at])
        for other in range(g.layers):
            come = _absent(s, other, at, loose, layer, token)
            s.row[HBM + other, at] |= come
            s.layer[HELD, other] += ones(come)
            count += ones(come)
        newest = loose & bit(token & 63) if at == token >> 6 else NO_TOKEN
        _set_outside(s, at, newest, 0)
        _become_inside(g, s, at, loose ^ newest)
    count_ins(g, c, count, read)


@part
def _newest_come(g, s, c, row, layer, token, words):
    """Tokens of a row come in, newest first, as far as places go."""
    for w in range(words - 1, -1, -1):
        tokens = row[w]
        if tokens == NO_TOKEN:
            continue
        count = ones(tokens)
        if tokens & ~s.row[ALIKE, w] == NO_TOKEN and count * g.layers <= free(g):
            s.row[INSIDE, w] |= tokens
            g.tokens_inside += count
            count_ins(g, c, count * g.layers, ones(tokens & s.row[MISSED, w]))
            continue
        while tokens != NO_TOKEN:
            if free(g) <= 0:
                return
            item = bit(highest(tokens))
            tokens ^= item
            _token_comes(g, s, c, w, item, layer, token)


@part
def _token_comes(g, s, c, w, item, layer, token):
    """The items of one token come in, lower layers first, as far as places go."""
    if s.row[ALIKE, w] & item != NO_TOKEN:
        if free(g) >= g.layers:
            s.row[INSIDE, w] |= item
            g.tokens_inside += 1
            count_ins(g, c, g.layers, ones(item & s.row[MISSED, w]))
            return
        s.row[ALIKE, w] &= ~item
        _set_outside(s, w, item, g.layers)
        _list_loose(g, s, w)
    left = loose_places(s, w, item)
    for other in range(g.layers):
        if left == 0 or free(g) <= 0:
            break
        if _absent(s, other, w, item, layer, token) != NO_TOKEN:
            s.row[HBM + other, w] |= item
            s.layer[HELD, other] += 1
            left -= 1
            count_ins(g, c, 1, ones(item & s.row[MISSED, w]) if other == layer else 0)
    _set_outside(s, w, item, left)
    if not (w == token >> 6 and item == bit(token & 63)):
        _settle(g, s, w, item)
