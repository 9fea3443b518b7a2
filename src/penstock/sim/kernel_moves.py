"""Moves in compiled code: how many items leave and come, all at once, or one by one where each must find time.

`c` is a step's bytes by kind, `g` a Given, `s` a State; `words` covers the tokens that exist.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from penstock.sim import prices
from penstock.sim.kernel_bits import NO_TOKEN, bit, highest, keep_highest, keep_lowest, lowest, ones
from penstock.sim.kernel_cache import part, piece
from penstock.sim.kernel_state import HBM, MISSED, NO_ROOM, READS, ROOM_BY_ITEM, SPARE
from penstock.sim.kernel_traffic import free, install_newest, put_in, take_oldest_out, take_out

MADE, NO_TIME, NO_MORE = range(3)

step_seconds = part(prices.step_seconds)


@part
def seconds(g, c, hbm_read, hbm_written, ext_read, ext_written):
    """T of a step with so many items moved besides."""
    return step_seconds(
        c[0] + c[2] + c[4] + c[5] + g.item * (hbm_read + hbm_written),
        c[1] + c[6] + g.item * ext_read,
        c[3] + c[7] + g.item * ext_written,
        g.b_hbm,
        g.b_read,
        g.b_write,
        g.b_internal,
        g.duplex,
        g.compute_s,
        g.fixed_s,
    )


@part
def has_time(g, c, outs, outs_read, ins, ins_read):
    """Whether T does not grow; of the items that move, some have been read by the compute already."""
    if g.exclusive:
        return seconds(g, c, outs - outs_read, ins, ins - ins_read, outs) <= g.limit_s
    return seconds(g, c, 0, ins, ins - ins_read, 0) <= g.limit_s


@part
def outs_of_layer(g, s, c, layer, row, limit, words):
    """The first `limit` items of a row that are in HBM leave, oldest first; what is left of the limit."""
    if not (g.slack and g.exclusive):
        gone, _ = take_oldest_out(g, s, c, layer, row, 0, limit, words, True)
        return limit - gone
    only_read = False
    for w in range(words):
        items = row[w] & s.row[HBM + layer, w]
        if items == NO_TOKEN:
            continue
        if ones(items) > limit:
            items = keep_lowest(items, limit)
        limit -= ones(items)
        if only_read:
            items &= s.row[READS, w]
        # What has time together has time one by one.
        if has_time(g, c, ones(items), ones(items & s.row[READS, w]), 0, 0):
            take_out(g, s, c, layer, w, items, True)
            items = NO_TOKEN
        while items != NO_TOKEN:
            item = bit(lowest(items))
            items ^= item
            read = ones(item & s.row[READS, w])
            if has_time(g, c, 1, read, 0, 0):
                take_out(g, s, c, layer, w, item, True)
            elif read:
                return 0
            else:
                only_read = True
                items &= s.row[READS, w]
        if limit == 0:
            break
    return limit


@part
def make_room(g, s, c, layer, needed, words):
    """Let what the policy would move out leave, oldest first, until so many places have become free or none is left."""
    if g.room_kind == ROOM_BY_ITEM:
        _, g.room_from = take_oldest_out(g, s, c, layer, s.row[SPARE], g.room_from, needed, words, True)
        return
    w = g.room_from
    while needed > 0 and w < words:
        held = NO_TOKEN
        for other in range(g.layers):
            held |= s.row[HBM + other, w]
        tokens = held & s.row[SPARE, w]
        while needed > 0 and tokens != NO_TOKEN:
            item = bit(lowest(tokens))
            tokens ^= item
            needed -= take_token_out(g, s, c, layer, w, item)
        if needed > 0:
            w += 1
    g.room_from = w


@part
def take_token_out(g, s, c, layer, w, item):
    """All items of one token leave."""
    count = 0
    for other in range(g.layers):
        held = s.row[HBM + other, w] & item
        if held != NO_TOKEN:
            count += take_out(g, s, c, other, w, held, other == layer)
    return count


@part
def ins_of_layer(g, s, c, layer, row, limit, words):
    """The first `limit` items of a row outside HBM come in, newest first, as far as places go; what is left of it."""
    if g.slack:
        return _ins_of_layer_with_time(g, s, c, layer, row, limit, words)
    wanted = 0
    for w in range(words):
        wanted += ones(row[w] & ~s.row[HBM + layer, w])
    wanted = min(wanted, limit)
    if wanted > free(g) and g.room_kind != NO_ROOM:
        make_room(g, s, c, layer, wanted - free(g), words)
    install_newest(g, s, c, layer, row, min(wanted, free(g)), words)
    return limit - wanted


@piece
def _ins_of_layer_with_time(g, s, c, layer, row, limit, words):
    only_read = False
    for w in range(words - 1, -1, -1):
        items = row[w] & ~s.row[HBM + layer, w]
        if ones(items) > limit:
            items = keep_highest(items, limit)
        limit -= ones(items)
        candidates = items & s.row[MISSED, w] if only_read else items
        count = ones(candidates)
        if count <= free(g) and has_time(g, c, 0, 0, count, ones(candidates & s.row[MISSED, w])):
            put_in(g, s, c, layer, w, candidates, True)
            items = NO_TOKEN
        while True:
            candidates = items & s.row[MISSED, w] if only_read else items
            if candidates == NO_TOKEN:
                break
            place = highest(candidates)
            items &= bit(place) - bit(0)
            came = try_in(g, s, c, layer, layer, w, bit(place), words)
            if came == NO_MORE:
                return 0
            only_read = came == NO_TIME
        if limit == 0:
            break
    return limit


@part
def try_in(g, s, c, layer, other, w, item, words):
    """One item comes in if the step has time for it, and for what must leave before it."""
    read = 1 if other == layer and s.row[MISSED, w] & item != NO_TOKEN else 0
    if free(g) > 0:
        if has_time(g, c, 0, 0, 1, read):
            put_in(g, s, c, other, w, item, other == layer)
            return MADE
        return NO_MORE if read else NO_TIME
    if g.room_kind == NO_ROOM:
        return NO_MORE
    from_w, spare, outs, outs_read = next_spare(g, s, layer, words)
    if outs == 0:
        return NO_MORE
    if has_time(g, c, outs, outs_read, 1, read):
        if g.room_kind == ROOM_BY_ITEM:
            take_out(g, s, c, layer, from_w, spare, True)
        else:
            take_token_out(g, s, c, layer, from_w, spare)
        put_in(g, s, c, other, w, item, other == layer)
        return MADE
    return NO_MORE if read else NO_TIME


@piece
def next_spare(g, s, layer, words):
    """The oldest of what may make room: its word and token, how many items leave with it, how many of them are read."""
    by_token = g.room_kind != ROOM_BY_ITEM
    for w in range(g.room_from, words):
        g.room_from = w
        held = s.row[HBM + layer, w]
        if by_token:
            for other in range(g.layers):
                held |= s.row[HBM + other, w]
        tokens = held & s.row[SPARE, w]
        if tokens != NO_TOKEN:
            token = bit(lowest(tokens))
            outs = 1
            if by_token:
                outs = 0
                for other in range(g.layers):
                    outs += ones(s.row[HBM + other, w] & token)
            return w, token, outs, ones(token & s.row[READS, w] & s.row[HBM + layer, w])
    return 0, NO_TOKEN, 0, 0
