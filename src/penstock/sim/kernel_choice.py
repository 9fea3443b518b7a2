"""The best of what could come in, in compiled code: those skipped in the fewest steps, as far as places go.

Candidates are chosen in whole groups of equal counts by halving, from a counter's highest plane down. They are items of
one layer, or whole tokens, where the tokens of the row ALIKE take a place at every layer and others one for each item
outside HBM.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from penstock.sim.kernel_bits import NO_TOKEN, bit, ones
from penstock.sim.kernel_cache import part
from penstock.sim.kernel_state import ALIKE, GROUP, REST


@part
def absent(s, other, w, tokens, layer, token):
    """Of loose tokens of a word those whose item at a layer exists and is not in HBM; `token` exists below `layer`."""
    outside = tokens & ~s.hbm[other, w]
    if other >= layer and w == token >> 6:
        outside &= ~bit(token & 63)
    return outside


@part
def places_for(g, s, row, most, layer, token, words):
    """How many places the candidates of a row take; more than `most` need not be counted to the end."""
    count = 0
    if not g.alike:
        for w in range(words):
            count += ones(row[w])
        return count
    alike = s.row[ALIKE]
    for w in range(words):
        count += ones(row[w] & alike[w])
    count *= g.layers
    for w in range(words):
        if count > most:
            break
        loose = row[w] & ~alike[w]
        if loose != NO_TOKEN:
            for other in range(g.layers):
                count += ones(absent(s, other, w, loose, layer, token))
    return count


@part
def choose_best(g, s, planes, row, places, layer, token, words):
    """Keep of a row the groups that have a place whole, and set REST to the next one; the places left for that."""
    rest, group = s.row[REST], s.row[GROUP]
    for w in range(words):
        rest[w] = row[w]
        row[w] = NO_TOKEN
    for p in range(planes.shape[0] - 1, -1, -1):
        plane = planes[p]
        for w in range(words):
            group[w] = rest[w] & ~plane[w]
        taken = places_for(g, s, group, places, layer, token, words)
        if taken <= places:
            places -= taken
            for w in range(words):
                row[w] |= group[w]
                rest[w] &= plane[w]
        else:
            for w in range(words):
                rest[w] = group[w]
    return places
