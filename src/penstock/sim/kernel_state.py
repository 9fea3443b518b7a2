"""What the kernels are given of a scenario and a policy pair, and what they keep from step to step."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.sim.initial import InitialState
from penstock.sim.migrations import CLOSE, Alpha, LookAhead, Lru, NoMigration, PastWindow, Prior, SkippedTokens
from penstock.sim.pair import Pair
from penstock.sim.placements import AlphaLayers
from penstock.sim.prices import SERIAL, Prices
from penstock.sim.scenario import Mode, Passive, Scenario

Words = NDArray[np.uint64]
Numbers = NDArray[np.int64]

NO_MIGRATION, PRIOR, SKIPPED_TOKENS, PAST_WINDOW, LOOK_AHEAD, ALPHA = range(6)
PASSIVE_OFF, PASSIVE_ALL, PASSIVE_ALPHA = range(3)
NO_ROOM, ROOM_BY_ITEM, ROOM_BY_TOKEN = range(3)

# Rows of State.row: R(n, l), of these the items not in HBM, candidates, what leaves or may make room, a free one, the
# tokens with an item in HBM or outside it at any layer, two to choose by, those of kernel_whole, what kernel_choice
# notes of loose tokens, and from HBM on those in HBM of each layer; Given says where others begin.
READS, MISSED, CHOSEN, SPARE, SCRATCH, SOME_HELD, SOME_ABSENT, GROUP, REST, ALIKE, INSIDE, LOOSE = range(12)
LOOSE_TOKENS, LOOSE_PLACES, HBM = range(12, 15)
# Numbers of State.layer: items in HBM, bytes of weights there, see Given.oldest, items that moved in in the step.
HELD, ATTN_HBM, OLDEST_USE, OLDEST_FROM, MOVED_IN = range(5)

UNKNOWN, NONE_LEFT = -1, 1 << 60  # of OLDEST_USE


class Given(NamedTuple):
    """Numbers that hold for a whole run; the kernels get them as a record, with the last ones to change."""

    layers: int
    prefill: int
    steps: int
    slots: int
    threshold_items: int
    item: int
    attn_bytes: int
    exclusive: int
    slack: int
    passive: int
    placed_by_items: int  # where a new item goes depends on what HBM holds of its layer
    migration: int
    window: int
    whole: int  # whole tokens move, or all layers' items
    room: int
    every: int  # past-window: skipped in every step
    tokens_out: int  # of prior, at a time
    share_p: int
    share_q: int
    target_p: int
    target_q: int
    b_hbm: int
    b_read: int
    b_write: int
    b_internal: int
    r_hbm: int
    r_read: int
    r_write: int
    r_internal: int
    duplex: int
    compute_s: float
    fixed_s: float
    limit_s: float  # T that moves must not make grow
    items: int  # in HBM
    kept: int  # places that moves leave free
    moves_noted: int  # whether what moves in is noted for passive installs
    room_kind: int
    room_from: int  # the word from which what may make room is looked for
    start_from: int  # the word from which prefill items never read are looked for
    alike: int  # whether whole tokens move as sets: see kernel_whole
    token_places: int  # that a token of ALIKE takes
    tokens_inside: int  # of INSIDE
    loose_words: int  # of LOOSE
    # The first rows of what passive installs keep of each layer: when its items were used last, in planes; of those in
    # HBM those used least recently, at OLDEST_USE, from the word OLDEST_FROM on; what migration moved in in the step.
    last_use: int
    time_planes: int
    oldest: int
    moved: int
    placed: int  # new items for which a place was free: those where the placement had a say


class State(NamedTuple):
    """Arrays that steps change; a row is the words of all tokens.

    Few of them, for every function that takes them is compiled with their shapes and strides as its arguments.
    """

    row: Words  # [rows, words]
    layer: Numbers  # [5, layers]
    outside: Words  # [words, planes] how many items outside HBM each loose token has


def given(scenario: Scenario, start: InitialState, pair: Pair) -> Given:
    """The numbers of a run of policies that come with Penstock."""
    memories, prices = scenario.memories, Prices.of(scenario)
    best = memories.best_share
    occupied_100 = 99 * memories.hbm_capacity_bytes - 100 * start.occupied_bytes
    numbers = {
        "layers": scenario.layers,
        "prefill": scenario.prefill_tokens,
        "steps": scenario.decode_tokens,
        "slots": start.slots,
        "threshold_items": occupied_100 // (100 * scenario.kv_bytes),
        "item": scenario.kv_bytes,
        "attn_bytes": scenario.attn_bytes,
        "exclusive": int(scenario.mode is Mode.EXCLUSIVE),
        "slack": int(pair.budget_slack),
        "passive": [Passive.OFF, Passive.ALL, Passive.ALPHA].index(pair.passive(scenario)),
        "share_p": best.numerator,
        "share_q": best.denominator,
        "b_hbm": prices.hbm,
        "b_read": prices.read,
        "b_write": prices.write,
        "b_internal": prices.internal,
        "duplex": prices.duplex,
        "items": int(start.items.sum()),
        "token_places": 1,
        "oldest": HBM + scenario.layers,
        "moved": HBM + 2 * scenario.layers,
        "last_use": HBM + 3 * scenario.layers,
        "time_planes": scenario.decode_tokens.bit_length(),
    }
    numbers |= zip(("r_hbm", "r_read", "r_write", "r_internal"), prices.reduced(), strict=True)
    numbers["placed_by_items"] = int(isinstance(pair.placement, AlphaLayers))
    numbers |= _migration(scenario, pair)
    # Where items leave and come one by one, the items of a token do not stay together.
    whole_sets = isinstance(pair.migration, LookAhead) and pair.migration.whole_tokens and not pair.migration.room
    if whole_sets and not pair.budget_slack and numbers["passive"] == PASSIVE_OFF:
        inside, loose = start.items.all(axis=0).sum(), len(_loose_words(start))
        numbers |= {"alike": 1, "token_places": scenario.layers, "tokens_inside": int(inside), "loose_words": loose}
    times = {"compute_s": scenario.compute_s, "fixed_s": scenario.fixed_s, "limit_s": 0.0}
    return Given(**dict.fromkeys(Given._fields, 0) | numbers | times)  # type: ignore[arg-type]  # mypy joins the values


def fits_int64(scenario: Scenario, g: Given) -> bool:
    """Whether the products that kernels compare stay within 64 bits."""
    tokens, window = scenario.prefill_tokens + scenario.decode_tokens, max(g.window, 1)
    read = scenario.attn_bytes + scenario.kv_bytes * tokens
    with_moves = read + 2 * scenario.kv_bytes * tokens * scenario.layers
    shares = max(g.share_p, g.share_q, g.target_p, g.target_q)
    alpha = 4 * CLOSE * shares * read * window
    if g.duplex == SERIAL:
        split = 3 * with_moves * max(g.r_hbm * g.r_read, g.r_hbm * g.r_write, g.r_read * g.r_write)
    else:
        split = 3 * with_moves * max(g.r_hbm, g.r_read, g.r_write, g.r_internal)
    return max(alpha, split) < 2**63


def _migration(scenario: Scenario, pair: Pair) -> dict[str, int]:
    match pair.migration:
        case NoMigration() | Lru():
            return {"migration": NO_MIGRATION}
        case Prior(count):
            return {"migration": PRIOR, "tokens_out": count}
        case SkippedTokens(layers):
            return {"migration": SKIPPED_TOKENS, "whole": int(layers == "all")}
        case PastWindow(window, rule):
            return {"migration": PAST_WINDOW, "window": window, "every": int(rule == "all")}
        case LookAhead(window, whole, room):
            return {"migration": LOOK_AHEAD, "window": window, "whole": int(whole), "room": int(room)}
        case Alpha(target, window):
            share = scenario.memories.best_share if target is None else target
            return {
                "migration": ALPHA,
                "window": window,
                "target_p": share.numerator,
                "target_q": share.denominator,
            }
        case other:
            raise TypeError(f"no kernel for {other!r}")


def record(g: Given) -> NDArray[np.void]:
    """The numbers as an array of one record, which compiled code can change."""
    kinds = [(name, np.float64 if name.endswith("_s") else np.int64) for name in Given._fields]
    return np.array([tuple(g)], np.dtype(kinds))


def state(scenario: Scenario, start: InitialState, g: Given) -> State:
    """HBM as it is before the first step."""
    layers, tokens = scenario.layers, scenario.prefill_tokens + scenario.decode_tokens
    words = -(-tokens // 64)
    inside: NDArray[np.bool_] = np.logical_and.reduce(start.items, axis=0)
    alike = inside | ~np.logical_or.reduce(start.items, axis=0)
    loose = start.items & ~alike if g.alike else start.items
    per_layer = np.zeros((5, layers), np.int64)
    per_layer[HELD] = loose.sum(axis=1)
    per_layer[ATTN_HBM] = start.attn_bytes
    per_layer[OLDEST_USE] = UNKNOWN
    rows = HBM + layers if g.passive == PASSIVE_OFF else g.last_use + layers * g.time_planes
    row = np.zeros((rows, words), np.uint64)
    outside = np.zeros((words, layers.bit_length()), np.uint64)
    row[HBM : HBM + layers] = _words(loose, words)
    row[ALIKE] = ~np.uint64(0)
    if g.alike:
        row[ALIKE], row[INSIDE] = _words(alike, words), _words(inside, words)
        row[LOOSE, : g.loose_words] = _loose_words(start)
        count = (~start.items & ~alike).sum(axis=0) >> np.arange(layers.bit_length())[:, None] & 1
        outside[:] = _words(count, words).T
    return State(row, per_layer, outside)


def _loose_words(start: InitialState) -> Numbers:
    """The words of prefill tokens that have items in both memories."""
    mixed = np.logical_or.reduce(start.items, axis=0) & ~np.logical_and.reduce(start.items, axis=0)
    return np.unique(np.flatnonzero(mixed) // 64)


def _words(flags: NDArray[np.bool_], words: int) -> Words:
    """Flags of the first tokens as rows of so many words."""
    padded = np.zeros((*flags.shape[:-1], words * 64), np.bool_)
    padded[..., : flags.shape[-1]] = flags
    return np.packbits(padded, axis=-1, bitorder="little").view("<u8").astype(np.uint64)
