"""Passive installs in compiled code: what was just read stays, and what was used least recently leaves.

Each layer keeps when its items were used last as bit planes, and of its items in HBM those used least recently. Time
is the decode step counted from 1; prefill items begin with 0. Within a step lower layers come first, so a layer and a
step are a time. The items of time 0 leave token by token over all layers.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from penstock.sim import prices
from penstock.sim.kernel_bits import NO_TOKEN, bit, highest, keep_lowest, lowest, ones, write_number
from penstock.sim.kernel_cache import part, piece
from penstock.sim.kernel_moves import has_time
from penstock.sim.kernel_state import (
    ATTN_HBM,
    HBM,
    MISSED,
    MOVED_IN,
    NONE_LEFT,
    OLDEST_FROM,
    OLDEST_USE,
    PASSIVE_ALPHA,
    READS,
    SCRATCH,
    UNKNOWN,
)
from penstock.sim.kernel_traffic import free, install_newest, put_in, take_oldest_out, take_out

passive_limit = part(prices.passive_limit)

NOBODY, FROM_START = -1, -2


@piece
def note_use(g, s, layer, token, time, words):
    """This step has read its reads and writes its token."""
    last, newest = token >> 6, bit(token & 63)
    s.row[READS, last] |= newest
    first = g.last_use + layer * g.time_planes
    write_number(s.row[first : first + g.time_planes], time, s.row[READS], words)
    s.row[READS, last] &= ~newest
    oldest, reads = s.row[g.oldest + layer], s.row[READS]
    for w in range(words):
        oldest[w] &= ~reads[w]


@piece
def install_reads(g, s, c, layer, reads, hits, time, words):
    """Install what was read from external memory and is outside HBM still, newest first, each for a victim at need."""
    limit = NONE_LEFT
    if g.passive == PASSIVE_ALPHA:
        step_bytes = g.attn_bytes + g.item * reads
        limit = passive_limit(g.share_p, g.share_q, step_bytes, s.layer[ATTN_HBM, layer], g.item, hits)
    if g.slack:
        _install_with_time(g, s, c, layer, limit, time, words)
        return
    wanted = 0
    for w in range(words):
        wanted += ones(s.row[MISSED, w] & ~s.row[HBM + layer, w])
    wanted = min(wanted, limit)
    short = wanted - free(g)
    while short > 0:
        oldest = _find_oldest(g, s, layer, time, words)
        if oldest == NOBODY:
            break
        short -= (
            _start_leaves(g, s, c, short, words) if oldest == FROM_START else _leaves(g, s, c, oldest, short, words)
        )
    install_newest(g, s, c, layer, s.row[MISSED], min(wanted, free(g)), words)


@piece
def _install_with_time(g, s, c, layer, limit, time, words):
    """All installs cost the same, so the first that finds no time is the last to be tried."""
    for w in range(words - 1, -1, -1):
        items = s.row[MISSED, w] & ~s.row[HBM + layer, w]
        while items != NO_TOKEN:
            if limit == 0:
                return
            item = bit(highest(items))
            items ^= item
            if free(g) > 0:
                if not has_time(g, c, 0, 0, 1, 1):
                    return
            else:
                oldest = _find_oldest(g, s, layer, time, words)
                if oldest == NOBODY or not has_time(g, c, 1, 0, 1, 1):
                    return
                if oldest == FROM_START:
                    _start_leaves(g, s, c, 1, words)
                else:
                    at = s.layer[OLDEST_FROM, oldest]
                    take_out(g, s, c, oldest, at, keep_lowest(_leaving(g, s, oldest, at), 1), False)
            put_in(g, s, c, layer, w, item, True)
            limit -= 1


@part
def forget_moves(g, s):
    """What migration has moved in counts for what leaves again: before installs as moved, after the step as held."""
    for layer in range(g.layers):
        if s.layer[MOVED_IN, layer]:
            s.layer[OLDEST_USE, layer] = UNKNOWN
            g.start_from = 0


@piece
def forget_step(g, s, layer, time):
    """The step is over: what came in may leave from now on."""
    forget_moves(g, s)
    for other in range(g.layers):
        if s.layer[MOVED_IN, other]:
            s.layer[MOVED_IN, other] = 0
            s.row[g.moved + other] = NO_TOKEN
    if s.layer[OLDEST_USE, layer] >= time:
        s.layer[OLDEST_USE, layer] = UNKNOWN


@part
def _find_oldest(g, s, layer, time, words):
    """The layer whose items leave next, with `oldest_from` at the first; FROM_START, with START_FROM at the first."""
    while True:
        found, use = NOBODY, NONE_LEFT
        for other in range(g.layers):
            if s.layer[OLDEST_USE, other] == UNKNOWN:
                _look_up_oldest(g, s, other, words)
            if s.layer[OLDEST_USE, other] < use and not (other == layer and s.layer[OLDEST_USE, other] == time):
                found, use = other, s.layer[OLDEST_USE, other]
        if found == NOBODY:
            return NOBODY
        if use == 0:
            for w in range(g.start_from, words):
                g.start_from = w
                for other in range(g.layers):
                    if s.layer[OLDEST_USE, other] == 0 and _leaving(g, s, other, w) != NO_TOKEN:
                        return FROM_START
            for other in range(g.layers):
                if s.layer[OLDEST_USE, other] == 0:
                    s.layer[OLDEST_USE, other] = UNKNOWN
        else:
            for w in range(s.layer[OLDEST_FROM, found], words):
                if _leaving(g, s, found, w) != NO_TOKEN:
                    s.layer[OLDEST_FROM, found] = w
                    return found
            s.layer[OLDEST_USE, found] = UNKNOWN


@part
def _leaving(g, s, layer, w):
    return s.row[g.oldest + layer, w] & s.row[HBM + layer, w] & ~s.row[g.moved + layer, w]


@piece
def _look_up_oldest(g, s, layer, words):
    """Find a layer's least recent use among its items in HBM that have not moved in this step."""
    oldest, here, moved = s.row[g.oldest + layer], s.row[HBM + layer], s.row[g.moved + layer]
    held = NO_TOKEN
    for w in range(words):
        oldest[w] = here[w] & ~moved[w]
        held |= oldest[w]
    use = 0
    if held == NO_TOKEN:
        use = NONE_LEFT
    else:
        first = g.last_use + layer * g.time_planes
        planes = s.row[first : first + g.time_planes]
        earlier = s.row[SCRATCH]
        for place in range(len(planes) - 1, -1, -1):
            plane, some = planes[place], NO_TOKEN
            for w in range(words):
                earlier[w] = oldest[w] & ~plane[w]
                some |= earlier[w]
            if some == NO_TOKEN:
                use |= 1 << place
            else:
                for w in range(words):
                    oldest[w] = earlier[w]
    s.layer[OLDEST_USE, layer] = use
    s.layer[OLDEST_FROM, layer] = 0


@part
def _leaves(g, s, c, layer, most, words):
    """Up to so many of a layer's least recently used items leave, oldest first; how many did."""
    oldest, moved, leaving = s.row[g.oldest + layer], s.row[g.moved + layer], s.row[SCRATCH]
    for w in range(words):
        leaving[w] = oldest[w] & ~moved[w]
    first = s.layer[OLDEST_FROM, layer]
    gone, s.layer[OLDEST_FROM, layer] = take_oldest_out(g, s, c, layer, leaving, first, most, words, False)
    return gone


@part
def _start_leaves(g, s, c, most, words):
    """Up to so many items that were never used leave, token by token; how many did."""
    left = most
    w = g.start_from
    while left > 0 and w < words:
        count, tokens = 0, NO_TOKEN
        for other in range(g.layers):
            if s.layer[OLDEST_USE, other] == 0:
                count += ones(_leaving(g, s, other, w))
                tokens |= _leaving(g, s, other, w)
        if count <= left:
            for other in range(g.layers):
                if s.layer[OLDEST_USE, other] == 0:
                    left -= take_out(g, s, c, other, w, _leaving(g, s, other, w), False)
            w += 1
            continue
        while left > 0:
            item = bit(lowest(tokens))
            tokens ^= item
            for other in range(g.layers):
                if left > 0 and s.layer[OLDEST_USE, other] == 0:
                    left -= take_out(g, s, c, other, w, _leaving(g, s, other, w) & item, False)
    g.start_from = min(w, words - 1)
    return most - left
