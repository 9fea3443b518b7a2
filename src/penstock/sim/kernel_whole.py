"""Whole tokens in compiled code, as sets: a token whose items all lie in the same memory takes one bit for all layers.

Such tokens are in the row ALIKE, those of them in HBM in INSIDE too, and State.hbm says nothing of them. The others are
loose: the newest token, whose items come to be layer by layer, and one that found places for a part of its items only.
`c` is a step's bytes by kind, `g` a Given, `s` a State; `words` covers the tokens that exist.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from penstock.sim.kernel_bits import NO_TOKEN, bit, highest, ones
from penstock.sim.kernel_cache import part
from penstock.sim.kernel_choice import absent, choose_best, places_for
from penstock.sim.kernel_moves import count_ins, count_outs, free
from penstock.sim.kernel_state import ALIKE, HELD, INSIDE, MISSED, READS, REST


@part
def settle(g, s, token):
    """A token that has all its items, and all in the same memory, is alike from now on."""
    w, item = token >> 6, bit(token & 63)
    if s.row[ALIKE, w] & item != NO_TOKEN:
        return
    held = 0
    for other in range(g.layers):
        held += ones(s.hbm[other, w] & item)
    if held == 0:
        s.row[ALIKE, w] |= item
    elif held == g.layers:
        _become_inside(g, s, w, item)


@part
def _become_inside(g, s, w, tokens):
    """Loose tokens whose items are all in HBM are alike from now on."""
    for other in range(g.layers):
        s.hbm[other, w] &= ~tokens
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
        count += ones(gone)
        read += ones(gone & reads[w])
    for w in range(words):
        inside[w] &= ~row[w]
    g.tokens_inside -= count
    count *= g.layers
    for w in range(words):
        loose = row[w] & ~alike[w]
        if loose == NO_TOKEN:
            continue
        read += ones(loose & s.hbm[layer, w] & reads[w])
        for other in range(g.layers):
            gone = loose & s.hbm[other, w]
            count += ones(gone)
            s.layer[HELD, other] -= ones(gone)
            s.hbm[other, w] &= ~loose
        alike[w] |= loose & ~bit(token & 63) if w == token >> 6 else loose
    count_outs(g, c, count, read)


@part
def whole_ins(g, s, c, counter, row, layer, token, words):
    """All items of the tokens of a row outside HBM come in as far as places go.

    Those that fewest steps skip come first, then the newest; within a token lower layers first.
    """
    places, inside = free(g), s.row[INSIDE]
    if places <= 0:
        return
    for w in range(words):
        row[w] &= ~inside[w]
    if places_for(g, s, row, places, layer, token, words) <= places:
        _come(g, s, c, row, layer, token, words)
        return
    places = choose_best(g, s, counter, row, places, layer, token, words)
    _come(g, s, c, row, layer, token, words)
    for w in range(words - 1, -1, -1):
        tokens = s.row[REST, w]
        while tokens != NO_TOKEN:
            if free(g) <= 0:
                return
            item = bit(highest(tokens))
            tokens ^= item
            _token_comes(g, s, c, w, item, layer, token)


@part
def _come(g, s, c, row, layer, token, words):
    """Tokens that have a place for each of their items come in."""
    alike, inside, missed = s.row[ALIKE], s.row[INSIDE], s.row[MISSED]
    count, read = 0, 0
    for w in range(words):
        come = row[w] & alike[w]
        count += ones(come)
        read += ones(come & missed[w])
    for w in range(words):
        inside[w] |= row[w] & alike[w]
    g.tokens_inside += count
    count *= g.layers
    for w in range(words):
        loose = row[w] & ~alike[w]
        if loose == NO_TOKEN:
            continue
        read += ones(absent(s, layer, w, loose, layer, token) & missed[w])
        for other in range(g.layers):
            come = absent(s, other, w, loose, layer, token)
            s.hbm[other, w] |= come
            s.layer[HELD, other] += ones(come)
            count += ones(come)
        _become_inside(g, s, w, loose & ~bit(token & 63) if w == token >> 6 else loose)
    count_ins(g, c, count, read)


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
    for other in range(g.layers):
        if absent(s, other, w, item, layer, token) != NO_TOKEN and free(g) > 0:
            s.hbm[other, w] |= item
            s.layer[HELD, other] += 1
            count_ins(g, c, 1, ones(item & s.row[MISSED, w]) if other == layer else 0)
    if not (w == token >> 6 and item == bit(token & 63)):
        settle(g, s, (w << 6) + highest(item))
