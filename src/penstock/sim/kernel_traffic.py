"""Items that leave HBM and come into it in compiled code, with the bytes that they take, in runs.

`c` is a step's bytes by kind, `g` a Given, `s` a State; `words` covers the tokens that exist. Loops over a part of a
row go over a view of it from 0 on: an index that could be negative counts from the end, and nothing is vectorised then.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from penstock.sim.kernel_bits import keep_highest, keep_lowest, ones
from penstock.sim.kernel_cache import part
from penstock.sim.kernel_state import HBM, HELD, MISSED, MOVED_IN, READS

BLOCK = 32  # words that are counted at once


@part
def free(g):
    """Places that a move may take."""
    return g.slots - g.items - g.kept


@part
def count_outs(g, c, count, read):
    """Account for items that leave HBM, so many of which this step has read."""
    g.items -= count
    if g.exclusive:
        c[7] += g.item * count
        c[4] += g.item * (count - read)


@part
def count_ins(g, c, count, read):
    """Account for items that come into HBM, so many of which this step has read."""
    g.items += count
    c[5] += g.item * count
    c[6] += g.item * (count - read)


@part
def take_out(g, s, c, layer, w, items, own):
    """Items of a word leave HBM; `own`: the layer is the one that this step has read."""
    count = ones(items)
    s.row[HBM + layer, w] &= ~items
    s.layer[HELD, layer] -= count
    count_outs(g, c, count, ones(items & s.row[READS, w]) if own else 0)
    return count


@part
def put_in(g, s, c, layer, w, items, own):
    """Items of a word come into HBM."""
    count = ones(items)
    s.row[HBM + layer, w] |= items
    s.layer[HELD, layer] += count
    count_ins(g, c, count, ones(items & s.row[MISSED, w]) if own else 0)
    if g.moves_noted:
        s.row[g.moved + layer, w] |= items
        s.layer[MOVED_IN, layer] += count


@part
def take_row_out(g, s, c, layer, row, first, words, own):
    """All items of a row's words from `first` on that are in HBM leave it; how many they are."""
    row, held, reads = row[first:words], s.row[HBM + layer, first:words], s.row[READS, first:words]
    count, read = 0, 0
    if own and g.exclusive:
        for w in range(words - first):
            read += ones(row[w] & held[w] & reads[w])
    for w in range(words - first):
        count += ones(row[w] & held[w])
        held[w] &= ~row[w]
    s.layer[HELD, layer] -= count
    count_outs(g, c, count, read)
    return count


@part
def take_oldest_out(g, s, c, layer, row, first, most, words, own):
    """The oldest items of a row in HBM leave, of the words from `first` on; how many, and the first word kept."""
    if most >= s.layer[HELD, layer]:
        return take_row_out(g, s, c, layer, row, first, words, own), words
    held, last, left = s.row[HBM + layer], first, most
    while last + BLOCK <= words:
        count = 0
        some, here = row[last : last + BLOCK], held[last : last + BLOCK]
        for w in range(BLOCK):
            count += ones(some[w] & here[w])
        if count > left:
            break
        left -= count
        last += BLOCK
    while left > 0 and last < words:
        count = ones(row[last] & held[last])
        if count > left:
            break
        left -= count
        last += 1
    take_row_out(g, s, c, layer, row, first, last, own)
    if left > 0 and last < words:
        left -= take_out(g, s, c, layer, last, keep_lowest(row[last] & held[last], left), own)
    return most - left, last


@part
def put_row_in(g, s, c, layer, row, first, words, own):
    """All items of a row's words from `first` on come into HBM."""
    row, held, missed = row[first:words], s.row[HBM + layer, first:words], s.row[MISSED, first:words]
    count, read = 0, 0
    if own:
        for w in range(words - first):
            read += ones(row[w] & ~held[w] & missed[w])
    if g.moves_noted:
        moved = s.row[g.moved + layer, first:words]
        for w in range(words - first):
            moved[w] |= row[w] & ~held[w]
    for w in range(words - first):
        count += ones(row[w] & ~held[w])
        held[w] |= row[w]
    s.layer[HELD, layer] += count
    count_ins(g, c, count, read)
    if g.moves_noted:
        s.layer[MOVED_IN, layer] += count


@part
def install_newest(g, s, c, layer, row, most, words):
    """The newest items of a row outside HBM come in, so many at most."""
    first, held = words, s.row[HBM + layer]
    while first >= BLOCK:
        count = 0
        some, here = row[first - BLOCK : first], held[first - BLOCK : first]
        for w in range(BLOCK):
            count += ones(some[w] & ~here[w])
        if count > most:
            break
        most -= count
        first -= BLOCK
    while most > 0 and first > 0:
        count = ones(row[first - 1] & ~held[first - 1])
        if count > most:
            break
        most -= count
        first -= 1
    put_row_in(g, s, c, layer, row, first, words, True)
    if most > 0 and first > 0:
        put_in(g, s, c, layer, first - 1, keep_highest(row[first - 1] & ~held[first - 1], most), True)
