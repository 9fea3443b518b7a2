"""The rules of docs/policies.md in compiled code, on words of 64 tokens."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from penstock.sim import prices
from penstock.sim.kernel_bits import bit, exchange, keep_lowest, ones, sum_over, where_equal
from penstock.sim.kernel_cache import part
from penstock.sim.kernel_choice import choose_best, places_for
from penstock.sim.kernel_moves import free, ins_of_layer, install_newest, outs_of_layer, put_row_in
from penstock.sim.kernel_state import (
    ALPHA,
    ATTN_HBM,
    CHOSEN,
    EMPTY,
    GROUP,
    HELD,
    LOOK_AHEAD,
    MISSED,
    NO_ROOM,
    PAST_WINDOW,
    PRIOR,
    REST,
    ROOM_BY_ITEM,
    ROOM_BY_TOKEN,
    SKIPPED_TOKENS,
    SOME_ABSENT,
    SOME_HELD,
    SPARE,
)
from penstock.sim.kernel_tokens import common, ins_of_tokens, outs_of_tokens, survey
from penstock.sim.kernel_whole import settle, whole_ins, whole_outs

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


@part
def migrate(g, s, c, bits, at, step, layer, token, skip_counts, words):
    """Make the moves of the migration policy."""
    g.room_kind = NO_ROOM
    g.room_from = 0
    if g.alike and layer == 0 and step > 0:
        settle(g, s, token - 1)
    if g.window:
        _slide(g, s, bits, at, step, layer, words)
    if g.migration == PRIOR:
        if layer == 0 and g.items > g.threshold_items:
            _choose_oldest_tokens(g, s, words)
            outs_of_tokens(g, s, c, layer, s.row[CHOSEN], words)
    elif g.migration == SKIPPED_TOKENS:
        if g.items > g.threshold_items:
            for w in range(words):
                s.row[CHOSEN, w] = bits[at, layer, w]
            if g.whole:
                survey(g, s, words)
                outs_of_tokens(g, s, c, layer, s.row[CHOSEN], words)
            else:
                outs_of_layer(g, s, c, layer, s.row[CHOSEN], UNLIMITED, words)
    elif g.migration == PAST_WINDOW:
        where_equal(s.skips[layer], min(g.window, step + 1) if g.every else 0, s.row[CHOSEN], words)
        if not g.every:
            for w in range(words):
                s.row[CHOSEN, w] = ~s.row[CHOSEN, w]
        outs_of_layer(g, s, c, layer, s.row[CHOSEN], UNLIMITED, words)
    elif g.migration == LOOK_AHEAD:
        length = min(g.window, g.steps - 1 - step)
        if length:
            _look_ahead(g, s, c, length, layer, token, words)
    elif g.migration == ALPHA:
        length = min(g.window, g.steps - 1 - step)
        if length:
            _alpha(g, s, c, length, step, layer, skip_counts, words)


@part
def _slide(g, s, bits, at, step, layer, words):
    """Keep count of how many steps of the window skip each token."""
    counter, none, more, less = s.skips[layer], s.row[EMPTY], s.row[GROUP], s.row[REST]
    if g.migration == PAST_WINDOW:
        if step >= g.window:
            exchange(counter, bits[at, layer], bits[at - g.window, layer], more, less, words)
        else:
            exchange(counter, bits[at, layer], none, more, less, words)
        return
    reach = min((g.prefill + step + g.window) // 64 + 1, bits.shape[2])
    if step == 0:
        for ahead in range(1, min(g.window + 1, g.steps)):
            exchange(counter, bits[at + ahead, layer], none, more, less, reach)
    elif step + g.window < g.steps:
        exchange(counter, bits[at + g.window, layer], bits[at, layer], more, less, reach)
    else:
        exchange(counter, none, bits[at, layer], more, less, words)


@part
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


@part
def _look_ahead(g, s, c, length, layer, token, words):
    """What the whole window skips leaves or may make room; the rest comes in, by how often it is read."""
    counter, leave, come = s.skips[layer], s.row[SPARE], s.row[CHOSEN]
    where_equal(counter, length, leave, words)
    _cut_after(leave, token)
    for w in range(words):
        come[w] = ~leave[w]
    _cut_after(come, token)
    if g.slack or g.room:
        _look_ahead_in_order(g, s, c, length, layer, token, words)
    elif g.alike:
        whole_outs(g, s, c, leave, layer, token, words)
        whole_ins(g, s, c, counter, come, layer, token, words)
    elif g.whole:
        _look_ahead_in_order(g, s, c, length, layer, token, words)
    else:
        outs_of_layer(g, s, c, layer, leave, UNLIMITED, words)
        come[token >> 6] &= ~bit(token & 63)
        _best_of_layer(g, s, c, counter, come, layer, token, words)


@part
def _best_of_layer(g, s, c, counter, come, layer, token, words):
    """Items of a row outside HBM come in as far as places go, those first that fewest steps skip, then the newest."""
    places, held = free(g), s.hbm[layer]
    if places <= 0:
        return
    for w in range(words):
        come[w] &= ~held[w]
    wanted = places_for(g, s, come, places, layer, token, words)
    if wanted > places:
        places = choose_best(g, s, counter, come, places, layer, token, words)
        install_newest(g, s, c, layer, s.row[REST], places, words)
    if wanted:
        put_row_in(g, s, c, layer, come, 0, words, True)


@part
def _look_ahead_in_order(g, s, c, length, layer, token, words):
    """The same where each move must find time, or room that another leaves."""
    counter, leave, come = s.skips[layer], s.row[SPARE], s.row[CHOSEN]
    if g.whole:
        survey(g, s, words)
        left = common(come, s.row[SOME_ABSENT], words)
    else:
        come[token >> 6] &= ~bit(token & 63)
        left = common(come, come, words) - common(come, s.hbm[layer], words)
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
            where_equal(counter, count, come, words)
            _cut_after(come, token)
        if g.whole:
            left -= common(come, s.row[SOME_ABSENT], words)
            ins_of_tokens(g, s, c, layer, token, come, words)
        else:
            come[token >> 6] &= ~bit(token & 63)
            left = ins_of_layer(g, s, c, layer, come, left, words)
        if all_fit:
            break


@part
def _cut_after(row, token):
    """Drop tokens that do not exist yet; a row's words end with that of `token`."""
    row[token >> 6] &= (bit(token & 63) - bit(0)) | bit(token & 63)


@part
def _alpha(g, s, c, length, step, layer, skip_counts, words):
    """Bring in, or move out, what is missing to the target."""
    weights, counter = s.layer[ATTN_HBM, layer], s.skips[layer]
    step_bytes, wanted = 0, 0
    for m in range(step + 1, step + 1 + length):
        reads = g.prefill + m - skip_counts[m, layer]
        size = g.attn_bytes + g.item * reads
        step_bytes += size
        wanted += best_items(g.target_p, g.target_q, size, weights, g.item, reads)
    held = length * s.layer[HELD, layer] - sum_over(counter, s.hbm[layer], words)
    from_hbm = length * weights + g.item * held
    if CLOSE * abs(g.target_q * from_hbm - g.target_p * step_bytes) <= g.target_q * step_bytes:
        return
    wanted, held = _mean(wanted, length), _mean(held, length)
    if held < wanted:
        g.room_kind = ROOM_BY_ITEM
        where_equal(counter, length, s.row[SPARE], words)
        _bring_in(g, s, c, length, step, layer, wanted - held, words)
    elif held > wanted and g.exclusive:
        limit = held - wanted
        for count in range(length - 1, -1, -1):
            where_equal(counter, count, s.row[CHOSEN], words)
            limit = outs_of_layer(g, s, c, layer, s.row[CHOSEN], limit, words)
            if limit == 0:
                break


@part
def _bring_in(g, s, c, length, step, layer, limit, words):
    """Of items that are read equally often, first those in flight."""
    token = g.prefill + step
    for count in range(length):
        for in_flight in (True, False):
            where_equal(s.skips[layer], count, s.row[CHOSEN], words)
            for w in range(words):
                s.row[CHOSEN, w] &= s.row[MISSED, w] if in_flight else ~s.row[MISSED, w]
            _cut_after(s.row[CHOSEN], token)
            s.row[CHOSEN, token >> 6] &= ~bit(token & 63)
            limit = ins_of_layer(g, s, c, layer, s.row[CHOSEN], limit, words)
            if limit == 0:
                return


@part
def _mean(total, count):
    return (2 * total + count) // (2 * count)
