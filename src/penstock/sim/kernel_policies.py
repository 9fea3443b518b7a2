"""The rules of docs/policies.md in compiled code, on words of 64 tokens."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from penstock.sim import prices
from penstock.sim.kernel_bits import EVERY, bit, keep_lowest, ones, sum_over, where_equal
from penstock.sim.kernel_cache import part, piece
from penstock.sim.kernel_choice import keep_best_items, places_for
from penstock.sim.kernel_moves import ins_of_layer, make_room, outs_of_layer
from penstock.sim.kernel_state import (
    ATTN_HBM,
    CHOSEN,
    HBM,
    HELD,
    INSIDE,
    LOOK_AHEAD,
    MISSED,
    NO_ROOM,
    PAST_WINDOW,
    PRIOR,
    ROOM_BY_ITEM,
    ROOM_BY_TOKEN,
    SKIPPED_TOKENS,
    SOME_ABSENT,
    SOME_HELD,
    SPARE,
)
from penstock.sim.kernel_tokens import common, ins_of_tokens, outs_of_tokens, survey
from penstock.sim.kernel_traffic import free, put_row_in
from penstock.sim.kernel_whole import begin_token, whole_ins, whole_outs

CLOSE = 200
UNLIMITED = 1 << 60

best_items = part(prices.best_items)


@part
def place(g, s, wanted, layer, token):
    """Whether the new item goes to HBM, where a place is free; `wanted`: where that depends on the trace alone."""
    if free(g) <= 0:
        return False
    g.placed += 1
    if g.placed_by_items:
        return (s.layer[HELD, layer] + g.tokens_inside) * g.share_q <= g.share_p * token
    return wanted


@piece
def migrate(g, s, c, skipped, named, skips, row, step, layer, token, skip_counts, words):
    """Make the moves of the migration policy; `row` is the place of the step in what its window says."""
    g.room_kind = NO_ROOM
    g.room_from = 0
    if g.alike and layer == 0:
        begin_token(g, s, token)
    if g.migration == PRIOR:
        if layer == 0 and g.items > g.threshold_items:
            _choose_oldest_tokens(g, s, words)
            outs_of_tokens(g, s, c, layer, s.row[CHOSEN], words)
    elif g.migration == SKIPPED_TOKENS:
        if g.items > g.threshold_items:
            _copy(skipped, s.row[CHOSEN], words)
            if g.whole:
                survey(g, s, words)
                outs_of_tokens(g, s, c, layer, s.row[CHOSEN], words)
            else:
                outs_of_layer(g, s, c, layer, s.row[CHOSEN], UNLIMITED, words)
    elif g.migration == PAST_WINDOW:
        _copy(named[row, layer], s.row[SPARE], words)
        outs_of_layer(g, s, c, layer, s.row[SPARE], UNLIMITED, words)
    elif step < g.steps - 1:
        _copy(named[row, layer], s.row[SPARE], words)
        length, planes = min(g.window, g.steps - 1 - step), skips[row, layer]
        if g.migration == LOOK_AHEAD:
            _look_ahead(g, s, c, planes, length, layer, token, words)
        else:
            _alpha(g, s, c, planes, length, step, layer, token, skip_counts, words)


@part
def _copy(row, other, words):
    for w in range(words):
        other[w] = row[w]


@piece
def _choose_oldest_tokens(g, s, words):
    """The oldest tokens that have an item in HBM."""
    survey(g, s, words)
    left = g.tokens_out
    for w in range(words):
        tokens = s.row[SOME_HELD, w]
        if ones(tokens) > left:
            tokens = keep_lowest(tokens, left)
        s.row[CHOSEN, w] = tokens
        left -= ones(tokens)


@piece
def _look_ahead(g, s, c, planes, length, layer, token, words):
    """What the whole window skips leaves or may make room; the rest comes in, by how often it is read."""
    leave, come = s.row[SPARE], s.row[CHOSEN]
    if g.slack or g.room or (g.whole and not g.alike):
        _look_ahead_in_order(g, s, c, planes, length, layer, token, words)
    elif g.alike:
        whole_outs(g, s, c, leave, layer, token, words)
        _set_neither(come, leave, s.row[INSIDE], token + 1, words)
        whole_ins(g, s, c, planes, come, layer, token, words)
    else:
        outs_of_layer(g, s, c, layer, leave, UNLIMITED, words)
        if free(g) > 0:
            _set_neither(come, leave, s.row[HBM + layer], token, words)
            count = places_for(g, s, come, words)
            _best_come(g, s, c, planes, count, min(count, free(g)), False, layer, words)


@part
def _best_come(g, s, c, planes, count, most, in_flight_first, layer, words):
    """So many of the chosen items outside HBM come in: those that fewest steps skip, then the newest."""
    if most == 0:
        return
    if most < count:
        keep_best_items(g, s, planes, s.row[CHOSEN], most, in_flight_first, words)
    put_row_in(g, s, c, layer, s.row[CHOSEN], 0, words, True)


@piece
def _look_ahead_in_order(g, s, c, planes, length, layer, token, words):
    """The same where each move must find time, or room that another leaves."""
    leave, come = s.row[SPARE], s.row[CHOSEN]
    exist = token + 1 if g.whole else token
    _set_neither(come, leave, leave, exist, words)
    if g.whole:
        survey(g, s, words)
        left = common(come, s.row[SOME_ABSENT], words)
    else:
        left = common(come, come, words) - common(come, s.row[HBM + layer], words)
    if g.room:
        g.room_kind = ROOM_BY_TOKEN if g.whole else ROOM_BY_ITEM
    elif g.whole:
        outs_of_tokens(g, s, c, layer, leave, words)
    else:
        outs_of_layer(g, s, c, layer, leave, UNLIMITED, words)
    # Where all find a place their order does not matter.
    all_fit = not g.slack and left * (g.layers if g.whole else 1) <= free(g)
    for count in range(length):
        if left == 0 or (free(g) <= 0 and not g.room):
            break
        if not all_fit:
            _set_group(come, planes, count, leave, exist, words)
        if g.whole:
            left -= common(come, s.row[SOME_ABSENT], words)
            ins_of_tokens(g, s, c, layer, token, come, words)
        else:
            left = ins_of_layer(g, s, c, layer, come, left, words)
        if all_fit:
            break


@part
def _set_neither(row, one, other, tokens, words):
    """Set a row to those of the first so many tokens that are in neither of two others."""
    for w in range(words):
        row[w] = ~(one[w] | other[w])
    _cut(row, tokens, words)


@part
def _set_group(row, planes, count, named, tokens, words):
    """Set a row to those of the first so many tokens that so many steps of the window skip, and not all of them."""
    where_equal(planes, count, row, words)
    for w in range(words):
        row[w] &= ~named[w]
    _cut(row, tokens, words)


@part
def _cut(row, tokens, words):
    """Drop the tokens after the first so many, which end in the last of a row's words or just before it."""
    row[words - 1] &= bit(tokens & 63) - bit(0) if tokens >> 6 == words - 1 else EVERY


@piece
def _alpha(g, s, c, planes, length, step, layer, token, skip_counts, words):
    """Bring in, or move out, what is missing to the target."""
    weights, leave, held_row = s.layer[ATTN_HBM, layer], s.row[SPARE], s.row[HBM + layer]
    step_bytes, wanted = 0, 0
    for m in range(step + 1, step + 1 + length):
        reads = g.prefill + m - skip_counts[m, layer]
        size = g.attn_bytes + g.item * reads
        step_bytes += size
        wanted += best_items(g.target_p, g.target_q, size, weights, g.item, reads)
    held = length * s.layer[HELD, layer] - sum_over(planes, held_row, words)
    if length == 1 << len(planes):  # what is skipped in so many steps has no digit left in the planes
        held -= length * common(leave, held_row, words)
    from_hbm = length * weights + g.item * held
    if CLOSE * abs(g.target_q * from_hbm - g.target_p * step_bytes) <= g.target_q * step_bytes:
        return
    wanted, held = _mean(wanted, length), _mean(held, length)
    if held < wanted:
        g.room_kind = ROOM_BY_ITEM
        _bring_in(g, s, c, planes, length, layer, token, wanted - held, words)
    elif held > wanted and g.exclusive:
        limit = held - wanted
        for count in range(length - 1, -1, -1):
            _set_group(s.row[CHOSEN], planes, count, leave, token, words)
            limit = outs_of_layer(g, s, c, layer, s.row[CHOSEN], limit, words)
            if limit == 0:
                break


@piece
def _bring_in(g, s, c, planes, length, layer, token, limit, words):
    """Of items that are read equally often, first those in flight; what the whole window skips makes room."""
    come, leave = s.row[CHOSEN], s.row[SPARE]
    if not g.slack:
        _set_neither(come, leave, s.row[HBM + layer], token, words)
        count = places_for(g, s, come, words)
        wanted = min(count, limit)
        if wanted > free(g):
            make_room(g, s, c, layer, wanted - free(g), words)
        _best_come(g, s, c, planes, count, min(wanted, free(g)), True, layer, words)
        return
    for count in range(length):
        for in_flight in (True, False):
            _set_group(come, planes, count, leave, token, words)
            for w in range(words):
                come[w] &= s.row[MISSED, w] if in_flight else ~s.row[MISSED, w]
            limit = ins_of_layer(g, s, c, layer, come, limit, words)
            if limit == 0:
                return


@part
def _mean(total, count):
    return (2 * total + count) // (2 * count)
