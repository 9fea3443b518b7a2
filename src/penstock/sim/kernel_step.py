"""The steps of a window, one after another, in compiled code."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from penstock.sim import prices
from penstock.sim.kernel_bits import bit, ones
from penstock.sim.kernel_cache import kept, part, piece
from penstock.sim.kernel_lru import forget_moves, forget_step, install_reads, note_use
from penstock.sim.kernel_moves import seconds
from penstock.sim.kernel_policies import migrate, place
from penstock.sim.kernel_state import ATTN_HBM, HBM, HELD, INSIDE, MISSED, NO_MIGRATION, PASSIVE_OFF, READS
from penstock.sim.kernel_whole import one_more_outside

split_bytes = part(prices.split_bytes)


@kept
def advance(given, s, bits, lead, first, named, skips, skip_counts, wanted, counts, items):
    """Replay a window's steps: fill counts [steps, layers, 8] and items in HBM [steps, layers].

    bits: [lead + steps + ahead, layers, words]; named, skips: see kernel_windows.Seen; skip_counts: of the whole trace
    [steps, layers]; wanted: whether new items should go to HBM [steps, layers].
    """
    g = given[0]
    for step in range(first, first + len(counts)):
        for layer in range(g.layers):
            c = counts[step - first, layer]
            skipped = bits[lead + step - first, layer]
            _step(g, s, c, skipped, named, skips, step - first, step, layer, skip_counts, wanted[step - first, layer])
            items[step - first, layer] = g.items


@piece
def _step(g, s, c, skipped, named, skips, row, step, layer, skip_counts, wanted):
    """Reads, moves, installs and the new item of one attention step, in this order; `row`: its place in the window."""
    token = g.prefill + step
    words = (token >> 6) + 1
    reads = token - skip_counts[step, layer]
    hits = _read(g, s, skipped, layer, token, words)
    c[0] = s.layer[ATTN_HBM, layer] + g.item * hits
    c[1] = g.attn_bytes - s.layer[ATTN_HBM, layer] + g.item * (reads - hits)
    to_hbm = False
    if g.slack:
        to_hbm = place(g, s, wanted, layer, token)
        _finish(g, c, to_hbm, hits)
        g.limit_s = seconds(g, c, 0, 0, 0, 0)
        g.kept = 1 if to_hbm else 0
    if g.migration != NO_MIGRATION:
        g.moves_noted = 1 if g.passive != PASSIVE_OFF else 0
        migrate(g, s, c, skipped, named, skips, row, step, layer, token, skip_counts, words)
        g.moves_noted = 0
    if g.passive != PASSIVE_OFF:
        note_use(g, s, layer, token, step + 1, words)
        forget_moves(g, s)
        install_reads(g, s, c, layer, reads, hits, step + 1, words)
        forget_step(g, s, layer, step + 1)
    g.kept = 0
    if not g.slack:
        to_hbm = place(g, s, wanted, layer, token)
        _finish(g, c, to_hbm, hits)
    if to_hbm:
        s.row[HBM + layer, token >> 6] |= bit(token & 63)
        s.layer[HELD, layer] += 1
        g.items += 1
    elif g.alike:
        one_more_outside(s, token >> 6, bit(token & 63))


@piece
def _read(g, s, skipped, layer, token, words):
    """Set the rows of what the step reads; how many of these items are in HBM."""
    held, inside, reads, missed, hits = s.row[HBM + layer], s.row[INSIDE], s.row[READS], s.row[MISSED], 0
    if not g.slack and g.passive == PASSIVE_OFF and g.migration == NO_MIGRATION:
        for w in range(words):
            hits += ones(~skipped[w] & held[w])
        return hits
    for w in range(words):
        here = held[w] | inside[w]
        hits += ones(~skipped[w] & here)
        reads[w] = ~skipped[w]
        missed[w] = ~(skipped[w] | here)
    before = bit(token & 63) - bit(0)
    reads[words - 1] &= before
    missed[words - 1] &= before
    return hits


@part
def _finish(g, c, to_hbm, hits):
    """Write the new item, and let the reader split what has two copies."""
    if to_hbm:
        c[2] = g.item
    if g.exclusive:
        if not to_hbm:
            c[3] = g.item
        return
    c[3] = g.item
    x = split_bytes(
        c[0] + c[2] + c[4] + c[5],
        c[1] + c[6],
        c[3] + c[7],
        g.item * hits,
        g.r_hbm,
        g.r_read,
        g.r_write,
        g.r_internal,
        g.duplex,
    )
    c[0] -= x
    c[1] += x
