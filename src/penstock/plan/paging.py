"""Moving whole layers to where they are computed: the known ways compared, for any model and machine.

Each way is counted twice: as the first estimates of such schemes did, with weights and KV moved in both directions for
every token, and as it is: weights are never written back, of KV only what is new, and R rows share a sweep. Only layers
move; the LM head and everything small stay on the fast tier, and the workspace of calls is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.machine.machine import Curve, Link
from penstock.plan.policy import Tier

SLOTS = 4  # of the ring of several slots
MOST_ROWS = 1 << 20  # a break-even beyond it counts as none

_SCALE_BITS = 32 / 64  # a scale and a zero point of 16 bits each for 64 weights
_FIRST_PARTS = {8: 1 / 4, 4: 1 / 8}  # of 16-bit weights, in the first estimates, which took them for 32-bit ones


@dataclass(frozen=True, slots=True)
class Paged:
    """A model on two tiers, as far as moving its layers goes; all layers are alike.

    layer_bytes: weights of a layer, weight_bits each. row_bytes: KV of one row in one layer; new_bytes: of it, what a
    token adds. rest_bytes: what stays on the fast tier in any case. hidden_bytes: of one token's residual stream.
    memory: bytes of the two tiers. inward, outward: links to the fast tier and from it. speed: tokens per second with
    everything on the fast tier, by rows; slow_speed: the same computed on the slow tier, None where nothing computes
    there. dequantise_per_s: packed weights that the fast tier unpacks in a second.
    """

    layers: int
    layer_bytes: int
    row_bytes: int
    new_bytes: int
    rest_bytes: int
    hidden_bytes: int
    weight_bits: float
    fast: Tier
    slow: Tier
    memory: Mapping[Tier, int]
    inward: Link
    outward: Link
    speed: Curve
    slow_speed: Curve | None
    dequantise_per_s: float

    def compute_s(self, rows: int) -> float:
        """Seconds of one token of each row, everything on the fast tier."""
        return rows / self.speed.at(rows)

    @property
    def layer_weights(self) -> float:
        """Weights of a layer."""
        return self.layer_bytes * 8 / self.weight_bits


@dataclass(frozen=True, slots=True)
class Scheme:
    """How layers move. moving: layers that do, in a sweep. slots: layers of room on the fast tier for them. grouped:
    layers of one transfer. weight_part: bytes moved of a layer's weights. kv_moves: whether KV moves with its layer.
    overlapped: whether transfers run beside compute. unpacked: weights that are unpacked in a sweep."""

    moving: int
    slots: int = 1
    grouped: int = 1
    weight_part: float = 1.0
    kv_moves: bool = True
    overlapped: bool = False
    unpacked: float = 0.0

    def transfer_s(self, model: Paged, rows: int) -> float:
        """What a sweep of so many rows waits for or hides: both directions in turn, or the longer one if overlapped."""
        groups = -(-self.moving // self.grouped)
        kv, new = (rows * model.row_bytes, rows * model.new_bytes) if self.kv_moves else (0, 0)
        come = model.inward.seconds(self.moving * (model.layer_bytes * self.weight_part + kv), groups)
        go = model.outward.seconds(self.moving * new, groups)
        return max(come, go) if self.overlapped else come + go

    def compute_s(self, model: Paged, rows: int) -> float:
        """Products and attention of a sweep, and unpacking."""
        return model.compute_s(rows) + self.unpacked / model.dequantise_per_s

    def sweep_s(self, model: Paged, rows: int) -> float:
        """A sweep in the middle of many."""
        compute, transfer = self.compute_s(model, rows), self.transfer_s(model, rows)
        return max(compute, transfer) if self.overlapped else compute + transfer

    def break_even_rows(self, model: Paged) -> int | None:
        """The fewest rows whose compute takes as long as their transfers; None where no number of rows does."""
        if not self.moving:
            return 0

        def even(rows: int) -> bool:
            return self.compute_s(model, rows) >= self.transfer_s(model, rows)

        high = 1
        while not even(high):
            high *= 2
            if high > MOST_ROWS:
                return None
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if even(middle) else (middle, high)
        return high


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the model. memory: bytes per tier. sweep_s: of a token for each of ``rows``, None where it cannot
    run. first_s: seconds per token in the first form. break_even_rows: the fewest with which a sweep computes for
    longer than its layers move; 0 where nothing moves, None where no number does."""

    name: str
    rows: int
    memory: Mapping[Tier, int]
    fits: bool
    sweep_s: float | None
    first_s: float | None
    resident_s: float
    break_even_rows: int | None
    remark: str = ""

    @property
    def token_s(self) -> float | None:
        """Seconds per token."""
        return None if self.sweep_s is None else self.sweep_s / self.rows

    @property
    def tok_s(self) -> float | None:
        """Tokens per second."""
        return None if self.sweep_s is None else self.rows / self.sweep_s

    @property
    def slowdown(self) -> float | None:
        """Against the same rows with everything on the fast tier."""
        return None if self.sweep_s is None else self.sweep_s / self.resident_s


def compare(model: Paged, rows: int | None = None) -> Sequence[Way]:
    """Every way, for one row, and last for many at once. rows: how many; those whose KV the fast tier holds if None."""
    many = rows or rows_held(model)
    one, ring = Scheme(model.layers), min(SLOTS, model.layers)
    held = layers_held(model)
    hot = held if held == model.layers else max(0, held - 1)  # the others need a slot
    cold = model.layers - hot
    double = replace(one, slots=2, overlapped=True)
    return [
        _resident(model),
        _split(model),
        _way(model, "one layer at a time", one, 1),
        _way(model, f"ring of {ring} slots", replace(one, slots=ring, grouped=ring), 1),
        _way(model, "double buffering", double, 1),
        _way(model, f"{hot} hot layers", replace(one, moving=cold, slots=min(1, cold)), 1),
        *(_way(model, f"{bits}-bit transfer", _compressed(model, bits), 1, bits) for bits in (8, 4)),
        _way(model, f"sweeps of {many:,} row{'s' if many > 1 else ''}", double, many),
        _way(model, f"the same, KV on {model.fast}", replace(double, kv_moves=False), many),
    ]


def layers_held(model: Paged) -> int:
    """Layers that the fast tier holds, each with the KV of one row."""
    layer = model.layer_bytes + model.row_bytes
    return max(0, min(model.layers, (model.memory[model.fast] - model.rest_bytes) // layer))


def rows_held(model: Paged) -> int:
    """Rows whose KV rests on the fast tier beside two slots for layers; 1 at least."""
    room = model.memory[model.fast] - model.rest_bytes - 2 * model.layer_bytes
    row = model.layers * model.row_bytes
    return max(1, room // row) if row else MOST_ROWS


def first_transfer_s(model: Paged, moving: float, weight_part: float = 1.0) -> float:
    """Transfers of one token as first estimates have them: weights and KV of every layer, there and back, no latency.

    ``(W + KV) · 2 · layers / bandwidth``.
    """
    return (model.layer_bytes * weight_part + model.row_bytes) * 2 * moving / model.inward.bytes_per_s


def _resident(model: Paged) -> Way:
    nbytes = model.rest_bytes + model.layers * (model.layer_bytes + model.row_bytes)
    seconds = model.compute_s(1)
    return _made(model, "resident", 1, {model.fast: nbytes, model.slow: 0}, seconds, seconds, 0)


def _split(model: Paged) -> Way:
    """Some layers on the fast tier, the others computed where they lie; a row's hidden state crosses once."""
    held = layers_held(model)
    layer = model.layer_bytes + model.row_bytes
    memory = {model.fast: model.rest_bytes + held * layer, model.slow: (model.layers - held) * layer}
    name, part = f"static split {held}/{model.layers}", held / model.layers
    if model.slow_speed is None and part < 1:
        return _made(model, name, 1, memory, None, None, 0, f"nothing computes on {model.slow}")
    there = 0.0 if model.slow_speed is None else (1 - part) / model.slow_speed.at(1)
    crossing = model.inward.seconds(model.hidden_bytes) if part < 1 else 0.0
    seconds = part * model.compute_s(1) + there + crossing
    return _made(model, name, 1, memory, seconds, seconds, 0)


def _compressed(model: Paged, bits: int) -> Scheme:
    """One layer at a time, packed in fewer bits; weights that are no wider than that move as they are."""
    packed = (bits + _SCALE_BITS) / model.weight_bits
    if packed >= 1:
        return Scheme(model.layers)
    return Scheme(model.layers, weight_part=packed, unpacked=model.layers * model.layer_weights)


def _way(model: Paged, name: str, scheme: Scheme, rows: int, bits: int | None = None) -> Way:
    """A scheme at a number of rows, beside its first form, which knew no shared sweeps and took a ring for a cache."""
    resident = model.layers - scheme.moving
    kv = rows * model.row_bytes
    held = resident * (model.layer_bytes + kv) + (0 if scheme.kv_moves else scheme.moving * kv)
    slot = model.layer_bytes * (scheme.weight_part + 1 if scheme.unpacked else 1) + (kv if scheme.kv_moves else 0)
    memory = {
        model.fast: int(model.rest_bytes + held + scheme.slots * slot),
        model.slow: int(scheme.moving * (model.layer_bytes * scheme.weight_part + (kv if scheme.kv_moves else 0))),
    }
    first_part = _FIRST_PARTS[bits] if bits else 1.0
    transfer = first_transfer_s(model, scheme.moving / scheme.grouped, first_part)
    first = max(model.compute_s(1), transfer) if scheme.overlapped else model.compute_s(1) + transfer
    return _made(model, name, rows, memory, scheme.sweep_s(model, rows), first, scheme.break_even_rows(model))


def _made(
    model: Paged,
    name: str,
    rows: int,
    memory: Mapping[Tier, int],
    sweep_s: float | None,
    first_s: float | None,
    break_even_rows: int | None,
    remark: str = "",
) -> Way:
    fits = all(nbytes <= model.memory.get(tier, 0) for tier, nbytes in memory.items())
    return Way(name, rows, memory, fits, sweep_s, first_s, model.compute_s(rows), break_even_rows, remark)
