"""Attention through the engine's own ``attend``: FLOP/s by the query tokens of a span, and the speed of reading KV.

FLOP: 2 · heads · (key width + value width) for each query with each key that it sees. In decode every key gives a fixed
number of FLOP and of bytes, so one shape alone cannot tell which of the two takes its time: rows with one head per KV
head show the bytes, rows with eight the arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, cycle, pairwise
from statistics import mean

import torch

from penstock.engine.attention import attend
from penstock.engine.call_tables import CallTables
from penstock.machine.machine import Curve
from penstock.profiling.fits import fit_line
from penstock.profiling.place import Place
from penstock.profiling.timing import median_s

BLOCK_TOKENS = 16
DECODE_ROWS, DECODE_KEYS = 64, (50, 200, 800)
SPANS = (16, 64, 256)  # query tokens of prefill
_LEAST_PART = 0.5  # of the time of the most keys that is theirs, however the line through fewer lies
CALL_TOKENS = 256  # of a call of prefill: as many spans as it takes


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, heads that keys and values have, and the width of each."""

    queries: int
    kv: int
    dim: int = 128

    @property
    def pair_flops(self) -> int:
        """Of one query token with one key, both products."""
        return 2 * self.queries * 2 * self.dim

    def kv_bytes(self, item: int) -> int:
        """Keys and values of one token."""
        return self.kv * 2 * self.dim * item


PLAIN, SHARED, TYPICAL = Heads(4, 4), Heads(32, 4), Heads(32, 8)


@dataclass(frozen=True, slots=True)
class AttentionRates:
    """flops: FLOP/s by query tokens of a span. row_s: of a row in decode, whatever its keys."""

    flops: Curve
    kv_bytes_per_s: float
    row_s: float


@dataclass(frozen=True, slots=True)
class Decoded:
    """Seconds of one layer's attention of ``rows`` rows with so many keys each."""

    rows: int
    keys: int
    seconds: float

    def beyond(self, call_s: float) -> "Decoded":
        """Without what a call of attention takes whatever it attends to, which is part of a visit."""
        return replace(self, seconds=max(self.seconds - call_s, self.seconds / 2))


def measure_attention(
    place: Place,
    budget_s: float,
    rows: int = DECODE_ROWS,
    keys: Sequence[int] = DECODE_KEYS,
    spans: Sequence[int] = SPANS,
) -> AttentionRates:
    """Rates of decode and of prefill from position 0."""
    longest_bytes = (max(keys) + BLOCK_TOKENS) * PLAIN.kv_bytes(place.auto.kv.itemsize)
    rows = max(1, min(rows, place.room_bytes // longest_bytes))
    share_s = budget_s / (2 * len(keys) + len(spans) + 1)
    call_s = decode_s(place, PLAIN, 1, 1, share_s).seconds
    plain = [decode_s(place, PLAIN, rows, number, share_s).beyond(call_s) for number in keys]
    shared = [decode_s(place, SHARED, rows, number, share_s).beyond(call_s) for number in keys]
    prefill = [(float(count), prefill_flops(place, TYPICAL, count, share_s)) for count in spans]
    return decode_rates(plain, shared, place.auto.kv.itemsize, prefill)


def decode_rates(
    plain: Sequence[Decoded], shared: Sequence[Decoded], item: int, prefill: Sequence[tuple[float, float]]
) -> AttentionRates:
    """Rates that give time = rows · row_s + max(FLOP / flops(1), bytes / kv_bytes_per_s) for both kinds of heads.

    Where rows with shared heads are held up by their bytes too, both sides of the maximum agree on them, and other
    shapes are at least not promised more than was seen.
    """
    lines = [fit_line([d.keys for d in many], [d.seconds / d.rows for d in many]) for many in (plain, shared)]
    kv_rate, flop_rate = (
        amount / max(line.each_s, _LEAST_PART * many[-1].seconds / many[-1].rows / many[-1].keys)
        for amount, line, many in zip((PLAIN.kv_bytes(item), SHARED.pair_flops), lines, (plain, shared), strict=True)
    )
    curve = Curve(((1.0, flop_rate), *sorted(prefill)))
    return AttentionRates(curve, kv_rate, mean(line.fixed_s for line in lines))


@torch.inference_mode()
def decode_s(place: Place, heads: Heads, rows: int, keys: int, budget_s: float) -> Decoded:
    """Rows of one query token each; layer after layer has KV of its own, so that none is in cache."""
    per_row = -(-keys // BLOCK_TOKENS)
    layer_bytes = rows * per_row * BLOCK_TOKENS * heads.kv_bytes(place.auto.kv.itemsize)
    layers = place.copies(layer_bytes)
    k_arena, v_arena = kv_arenas(place, heads, layers * rows * per_row)
    tables = _tables(place, layers, [(keys - 1, 1)] * rows)
    q = place.noise(rows * heads.queries * heads.dim, place.auto.compute).view(rows, heads.queries, heads.dim)
    return Decoded(rows, keys, _attend_s(place, q, k_arena, v_arena, tables, budget_s))


@torch.inference_mode()
def prefill_flops(place: Place, heads: Heads, count: int, budget_s: float) -> float:
    """FLOP/s of spans of ``count`` tokens from position 0, as many as a call holds."""
    spans = max(1, CALL_TOKENS // count)
    k_arena, v_arena = kv_arenas(place, heads, spans * -(-count // BLOCK_TOKENS))
    tables = _tables(place, 1, [(0, count)] * spans)
    tokens = spans * count
    q = place.noise(tokens * heads.queries * heads.dim, place.auto.compute).view(tokens, heads.queries, heads.dim)
    pairs = spans * count * (count + 1) // 2
    return pairs * heads.pair_flops / _attend_s(place, q, k_arena, v_arena, tables, budget_s)


def _attend_s(
    place: Place,
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    tables: Sequence[CallTables],
    budget_s: float,
) -> float:
    in_turn, scaling = cycle(tables), q.shape[-1] ** -0.5

    def work() -> None:
        attend(q, k_arena, v_arena, next(in_turn), None, scaling)
        place.settle()

    return median_s(work, budget_s)


def kv_arenas(place: Place, heads: Heads, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (blocks, KV heads, tokens, dim), side by side in each block as the engine keeps them."""
    shape = (blocks, heads.kv, BLOCK_TOKENS, heads.dim)
    both = place.noise(blocks * BLOCK_TOKENS * 2 * heads.kv * heads.dim, place.auto.kv).view(blocks, -1)
    keys, values = both.chunk(2, 1)
    return keys.view(shape), values.view(shape)


def _tables(place: Place, layers: int, spans: Sequence[tuple[int, int]]) -> list[CallTables]:
    """Tables of one call in several layers, each with blocks of its own in no order."""
    ends = list(accumulate((-(-(first + count) // BLOCK_TOKENS) for first, count in spans), initial=0))
    ids = torch.randperm(layers * ends[-1]).view(layers, ends[-1]).tolist()
    where = place.device.torch_device
    return [
        CallTables.build(spans, [layer[start:end] for start, end in pairwise(ends)], BLOCK_TOKENS, where)
        for layer in ids
    ]
