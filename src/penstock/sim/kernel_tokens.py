"""Moves of whole tokens in compiled code: all items of a token at every layer, row by row, or token by token if few.

`c` is a step's bytes by kind, `g` a Given, `s` a State; `words` covers the tokens that exist.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from penstock.sim.kernel_bits import NO_TOKEN, bit, has, highest, lowest, ones
from penstock.sim.kernel_cache import part, piece
from penstock.sim.kernel_moves import NO_MORE, NO_TIME, has_time, make_room, take_token_out, try_in
from penstock.sim.kernel_state import GROUP, HBM, MISSED, NO_ROOM, READS, SOME_ABSENT, SOME_HELD
from penstock.sim.kernel_traffic import free, put_in, put_row_in, take_out, take_row_out

FEW = 16  # a token's items lie in as many rows as there are layers: a row's words are that many times as fast


@part
def survey(g, s, words):
    """Note which tokens have an item in HBM, and which one outside."""
    held, absent = s.row[SOME_HELD], s.row[SOME_ABSENT]
    held[:words] = NO_TOKEN
    absent[:words] = NO_TOKEN
    for layer in range(g.layers):
        row = s.row[HBM + layer]
        for w in range(words):
            held[w] |= row[w]
            absent[w] |= ~row[w]


@part
def common(row, other, words):
    """How many tokens two rows share."""
    count = 0
    for w in range(words):
        count += ones(row[w] & other[w])
    return count


@part
def outs_of_tokens(g, s, c, layer, row, words):
    """All items of the tokens of a row leave HBM, oldest first, lower layers first; `survey` came before."""
    if g.slack and g.exclusive:
        _outs_of_tokens_with_time(g, s, c, layer, row, words)
        return
    held = s.row[SOME_HELD]
    if common(row, held, words) * FEW > words:
        for other in range(g.layers):
            take_row_out(g, s, c, other, row, 0, words, other == layer)
        return
    for w in range(words):
        tokens = row[w] & held[w]
        while tokens != NO_TOKEN:
            item = bit(lowest(tokens))
            tokens ^= item
            take_token_out(g, s, c, layer, w, item)


@piece
def _outs_of_tokens_with_time(g, s, c, layer, row, words):
    only_read = False
    for w in range(words):
        tokens = row[w] & s.row[SOME_HELD, w]
        if tokens != NO_TOKEN and not only_read and _word_leaves(g, s, c, layer, w, tokens):
            continue
        while True:
            if only_read:
                tokens &= s.row[READS, w] & s.row[HBM + layer, w]
            if tokens == NO_TOKEN:
                break
            item = bit(lowest(tokens))
            tokens ^= item
            for other in range(g.layers):
                if s.row[HBM + other, w] & item == NO_TOKEN:
                    continue
                read = 1 if other == layer and s.row[READS, w] & item != NO_TOKEN else 0
                if only_read and not read:
                    continue
                if has_time(g, c, 1, read, 0, 0):
                    take_out(g, s, c, other, w, item, other == layer)
                elif read:
                    return
                else:
                    only_read = True


@piece
def _word_leaves(g, s, c, layer, w, tokens):
    """All items of a word's tokens leave if there is time for them together: whether they did."""
    count = 0
    for other in range(g.layers):
        count += ones(tokens & s.row[HBM + other, w])
    if not has_time(g, c, count, ones(tokens & s.row[READS, w] & s.row[HBM + layer, w]), 0, 0):
        return False
    for other in range(g.layers):
        take_out(g, s, c, other, w, tokens & s.row[HBM + other, w], other == layer)
    return True


@piece
def _word_comes(g, s, c, layer, w, tokens):
    """All items of a word's tokens come in if there is room and time for them together: whether they did."""
    count = 0
    for other in range(g.layers):
        count += ones(tokens & ~s.row[HBM + other, w])
    read = ones(tokens & s.row[MISSED, w] & ~s.row[HBM + layer, w])
    if count > free(g) or not has_time(g, c, 0, 0, count, read):
        return False
    for other in range(g.layers):
        put_in(g, s, c, other, w, tokens & ~s.row[HBM + other, w], other == layer)
    return True


@piece
def ins_of_tokens(g, s, c, layer, token, row, words):
    """All items of the tokens of a row outside HBM come in, newest first, lower layers first, as far as places go.

    The new token's items exist below this layer only, and its bit is cleared; `survey` came before.
    """
    if g.slack:
        _ins_of_tokens_with_time(g, s, c, layer, token, row, words)
        return
    last, newest, columns = token >> 6, bit(token & 63), s.row[GROUP]
    newest_is_in = has(row, token)
    row[last] &= ~newest
    few = common(row, s.row[SOME_ABSENT], words) * FEW <= words
    if g.room_kind != NO_ROOM or not few:
        wanted = _count_absent_by_word(g, s, row, words)
        if newest_is_in:
            for other in range(layer):
                wanted += ones(newest & ~s.row[HBM + other, last])
        if wanted > free(g) and g.room_kind != NO_ROOM:
            make_room(g, s, c, layer, wanted - free(g), words)
    if newest_is_in:
        put_token_in(g, s, c, layer, layer, last, newest)
    first = words
    if not few:
        count = free(g)
        while first > 0 and np.int64(columns[first - 1]) <= count:
            first -= 1
            count -= np.int64(columns[first])
        for other in range(g.layers):
            put_row_in(g, s, c, other, row, first, words, other == layer)
    for w in range(first - 1, -1, -1):
        tokens = row[w] & s.row[SOME_ABSENT, w]
        while tokens != NO_TOKEN and free(g) > 0:
            item = bit(highest(tokens))
            tokens ^= item
            put_token_in(g, s, c, layer, g.layers, w, item)
        if free(g) <= 0:
            break


@piece
def _count_absent_by_word(g, s, row, words):
    """Set the row GROUP to how many items of each word of a row are outside HBM; how many they are together."""
    columns, total = s.row[GROUP], np.int64(0)
    for w in range(words):
        columns[w] = NO_TOKEN
    for layer in range(g.layers):
        held = s.row[HBM + layer]
        for w in range(words):
            columns[w] += np.uint64(ones(row[w] & ~held[w]))
    for w in range(words):
        total += np.int64(columns[w])
    return total


@part
def put_token_in(g, s, c, layer, below, w, item):
    """The items of one token outside HBM come in at the layers below `below`, as far as places go."""
    for other in range(below):
        if free(g) <= 0:
            break
        if s.row[HBM + other, w] & item == NO_TOKEN:
            put_in(g, s, c, other, w, item, other == layer)


@piece
def _ins_of_tokens_with_time(g, s, c, layer, token, row, words):
    only_read = False
    for w in range(words - 1, -1, -1):
        tokens = row[w] & s.row[SOME_ABSENT, w]
        if tokens != NO_TOKEN and not only_read and w < token >> 6 and _word_comes(g, s, c, layer, w, tokens):
            continue
        while True:
            candidates = tokens & s.row[MISSED, w] & ~s.row[HBM + layer, w] if only_read else tokens
            if candidates == NO_TOKEN:
                break
            place = highest(candidates)
            item = bit(place)
            tokens &= item - bit(0)
            below = layer if w == token >> 6 and place == token & 63 else g.layers
            for other in range(below):
                if s.row[HBM + other, w] & item != NO_TOKEN:
                    continue
                if only_read and not (other == layer and s.row[MISSED, w] & item != NO_TOKEN):
                    continue
                came = try_in(g, s, c, layer, other, w, item, words)
                if came == NO_MORE:
                    return
                only_read = came == NO_TIME
